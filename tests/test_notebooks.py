"""The notebooks run from top to bottom at reduced size, and are stored with their output."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.compiling import compiler_flags
from tests.selecting import thorough_but

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", thorough_but(NOTEBOOKS, NOTEBOOKS[0]), ids=lambda path: path.stem)
def test_runs(path: Path) -> None:
    """Each notebook runs in a separate process, as by hand; JAXNORM_QUICK makes it small."""
    run = (
        "import sys, nbformat, nbclient; "
        "nbclient.NotebookClient(nbformat.read(sys.argv[1], 4), timeout=300).execute()"
    )
    environment = {
        **os.environ,
        "JAXNORM_QUICK": "1",
        "XLA_FLAGS": compiler_flags(),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", run, str(path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_it_ran(path: Path) -> None:
    """All cells have run in order without errors, and the outputs include pictures."""
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
