"""The progress bar of tools that iterate over batches."""

import io

import pytest
import rich
from rich.console import Console

from jaxnorm.tools._stats import _progress


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["at once", "later"])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("progress", [None, True, False])
def test_when_it_appears(
    monkeypatch: pytest.MonkeyPatch, progress: bool | None, terminal: bool, seconds: float
) -> None:
    """A bar that nobody asked for appears only in a terminal, and only if the work takes a while."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    monkeypatch.setattr(_progress, "_SOON", seconds)
    assert list(_progress.tracked(range(5), "Working", 5, progress)) == [0, 1, 2, 3, 4]
    expected = (terminal and not seconds) if progress is None else progress
    assert ("Working" in file.getvalue()) == expected
    assert ("100%" in file.getvalue()) == expected


def test_loops_that_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is closed if the loop raises."""
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    items = _progress.tracked(range(5), "Working", None, True)
    next(items)
    items.close()
    for _ in range(2):  # rich allows one live display at a time
        assert list(_progress.tracked([], "Working", None, True)) == []
