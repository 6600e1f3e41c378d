"""Gradients of a maximum of y, which compares y with a copy computed by another loop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.thorough
def test_gradients_of_maxima_when_compiled() -> None:
    """With users' compiler flags, compiled gradients match uncompiled ones."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.norms.maxima"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
