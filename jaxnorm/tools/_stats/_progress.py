"""A progress bar for tools that iterate over batches."""

import time
from collections.abc import Generator, Iterable
from importlib.util import find_spec
from typing import TypeVar

_Item = TypeVar("_Item")
_SOON = 2.0  # seconds


def tracked(
    items: Iterable[_Item], what: str, total: int | None, progress: bool | None
) -> Generator[_Item, None, None]:
    """Iterates over ``items`` with a progress bar, if ``progress``.

    If it is None, the bar appears after two seconds, in a terminal or a notebook.
    """
    import rich  # imported late: only recalibrate needs it
    from rich.progress import Progress

    console = rich.get_console()
    in_notebook = console.is_jupyter and find_spec("ipywidgets") is not None  # rich needs it there
    shown = (console.is_terminal or in_notebook) if progress is None else progress
    bar, task = Progress(console=console), None
    wait = 0.0 if progress else _SOON
    began = time.monotonic()
    try:
        for done, item in enumerate(items):
            if shown and task is None and time.monotonic() - began >= wait:
                task = bar.add_task(what, total=total, completed=done)
                bar.start()
            yield item
            if task is not None:
                bar.update(task, completed=done + 1)
    finally:
        bar.stop()
