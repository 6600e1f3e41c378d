"""The programs to copy: they learn digits, with Linen and NNX, and are short."""

from pathlib import Path

import pytest

from examples import minimal, minimal_nnx


@pytest.mark.usefixtures("users_promotion")
@pytest.mark.parametrize("program", [minimal, minimal_nnx], ids=["linen", "nnx"])
def test_it_learns(program, capsys: pytest.CaptureFixture[str]) -> None:
    """A few epochs suffice, and running statistics evaluate as well as the last line says."""
    accuracy = program.main(epochs=3)
    assert accuracy > 0.9
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("epoch 3: loss ") and last.endswith(f"{accuracy:.1%}")
    assert len(Path(program.__file__).read_text().splitlines()) <= 150
