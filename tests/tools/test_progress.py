"""The progress bar of tools that take a while."""

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
import pytest
import rich
from flax import linen as nn
from rich.console import Console

from jaxnorm import tools
from jaxnorm.tools._stats import _progress


def work(progress: bool | None, seconds: float = 0.0) -> None:
    """Five steps."""
    with _progress.progress_bar("Working", 5, progress) as advance:
        for _ in range(5):
            time.sleep(seconds / 5)
            advance()


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], io.StringIO]:
    """A function that gives rich a console, which is a terminal or not, and returns what it prints to."""

    def given(terminal: bool) -> io.StringIO:
        file = io.StringIO()
        made = Console(file=file, force_terminal=terminal, width=80)
        monkeypatch.setattr(rich, "get_console", lambda: made)
        return file

    return given


@pytest.mark.parametrize("soon", [0.0, 1e3], ids=["at once", "later"])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("progress", [None, True, False])
def test_when_it_appears(
    monkeypatch: pytest.MonkeyPatch,
    console: Callable[[bool], io.StringIO],
    progress: bool | None,
    terminal: bool,
    soon: float,
) -> None:
    """A bar that nobody asked for appears only in a terminal, and only if the work takes a while."""
    file = console(terminal)
    monkeypatch.setattr(_progress, "_SOON", soon)
    work(progress, seconds=0.5)
    expected = (terminal and not soon) if progress is None else progress
    assert ("Working" in file.getvalue()) == expected
    assert ("100%" in file.getvalue()) == expected
    if not expected:
        assert file.getvalue() == ""


def test_it_appears_during_the_first_step(
    monkeypatch: pytest.MonkeyPatch, console: Callable[[bool], io.StringIO]
) -> None:
    """Compiling may be most of the work, and is part of the first step."""
    file = console(True)
    monkeypatch.setattr(_progress, "_SOON", 0.0)
    with _progress.progress_bar("Working", 1, None):
        until = time.monotonic() + 60
        while "Working" not in file.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
        assert "Working" in file.getvalue()


@pytest.mark.parametrize("progress", [None, True])
def test_work_that_fails(
    monkeypatch: pytest.MonkeyPatch, console: Callable[[bool], io.StringIO], progress: bool | None
) -> None:
    """The bar is closed, no timer is left, and the next bar can be shown."""
    console(True)
    monkeypatch.setattr(_progress, "_SOON", 0.0)
    for _ in range(2):
        with pytest.raises(ValueError, match="must be non-negative"):
            work(progress, seconds=-1)
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


class Net(nn.Module):
    """A model with a norm that folds."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns (N, 4)."""
        return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_batches_that_do_not_know_their_number(
    console: Callable[[bool], io.StringIO], error: type[Exception]
) -> None:
    """As in a list, without a percentage: loaders of iterable data sets have a length that is an error."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    variables = Net().init(jax.random.key(0), x)

    class Loader(list[Any]):
        def __len__(self) -> int:
            raise error("it has no len()")

    file = console(False)
    found, want = (
        tools.recalibrate(Net(), batches, variables=variables, progress=True)
        for batches in (Loader([x, 2 * x]), [x, 2 * x])
    )
    chex.assert_trees_all_equal(found, want)
    assert "Recalibrating" in file.getvalue()


def test_tools_that_have_one(console: Callable[[bool], io.StringIO]) -> None:
    """Every tool that runs the model shows one on request, and reaches its end."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    given: dict[str, Any] = {"variables": Net().init(jax.random.key(0), x), "progress": True}

    def mean(params: Any, batch: Any, axis_name: str | None) -> Any:
        total = batch.sum() if axis_name is None else jax.lax.psum(batch.sum(), axis_name)
        return batch * params[None], total

    calls = {
        "Recalibrating": lambda: tools.recalibrate(Net(), [x, x], **given),
        "Examining": lambda: tools.examine(Net(), x, **given),
        "Folding": lambda: tools.fold(Net(), x, **given),
        "Comparing": lambda: tools.assert_parity(mean, np.ones(3), x, progress=True),
    }
    for what, call in calls.items():
        file = console(False)
        call()
        assert what in file.getvalue()
        assert "100%" in file.getvalue()
