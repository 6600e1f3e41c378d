"""A progress bar for tools that take a while."""

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

_SOON = 2.0  # seconds


def length_of(batches: Iterable[Any]) -> int | None:
    """The number of steps of a bar over ``batches``, or None if they do not know it.

    Some data loaders have a ``__len__`` that raises an error, such as PyTorch's for an iterable data set.
    """
    try:
        return len(batches)  # pyright: ignore[reportArgumentType]
    except (TypeError, NotImplementedError):
        return None


@contextmanager
def progress_bar(
    what: str, steps: int | None, progress: bool | None
) -> Generator[Callable[[], None]]:
    """Yields a function to call after each step, which advances a bar if ``progress``.

    If it is None, the bar appears after two seconds, in a terminal or a notebook.
    """
    import rich  # imported late, so that importing the tools takes less time
    from rich.errors import LiveError
    from rich.progress import Progress

    console = rich.get_console()
    in_notebook = console.is_jupyter and find_spec("ipywidgets") is not None  # rich needs it there
    if not (console.is_terminal or in_notebook if progress is None else progress):
        yield lambda: None
        return
    bar = Progress(console=console)
    task = bar.add_task(what, total=steps)

    def appear() -> None:
        with suppress(LiveError):  # before rich 14.1, only one bar can be shown at a time
            bar.start()

    # A timer, because the first step may compile for a minute.
    later = threading.Timer(_SOON, appear)
    later.daemon = True
    if progress:
        appear()
    else:
        later.start()
    try:
        yield lambda: bar.advance(task)
    finally:
        if not progress:
            later.cancel()
            later.join()
        if bar.live.is_started:
            bar.stop()
