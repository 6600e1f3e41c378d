"""The types of the public interface, as pyright sees them in an installed package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxnorm

SOURCE = Path(jaxnorm.__file__).parent


@pytest.mark.skipif(
    not shutil.which("pyright", path=Path(sys.executable).parent), reason="no pyright"
)
def test_the_public_interface_is_typed(tmp_path: Path) -> None:
    """Every public function, class and attribute has a known type; types of other packages do not count."""
    # pyright does not accept an editable installation here.
    shutil.copytree(SOURCE, tmp_path / "jaxnorm")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    command = ("pyright", "--verifytypes", "jaxnorm", "--ignoreexternal")
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "Type completeness score: 100%" in found.stdout, found.stdout + found.stderr
