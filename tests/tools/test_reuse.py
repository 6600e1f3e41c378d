"""Tools compile once for a model and ``run``, and never use a program that has become wrong."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import nnx as jnx, tools
from jaxnorm.tools._model._reuse import meaning_of
from tests.tools.models import KEY, ROWS

TRACED: list[str] = []


class Linen(nn.Module):
    """A dense layer and a norm."""

    sizes: Any = (4,)

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        """Notes that it is traced."""
        TRACED.append("Linen")
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(self.sizes[0])(x))


class Nnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, seed: int = 0) -> None:
        """Creates the layers."""
        rngs = nnx.Rngs(seed)
        self.dense, self.norm = nnx.Linear(5, 4, rngs=rngs), jnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: Any, train: bool = False) -> Any:
        """Notes that it is traced."""
        TRACED.append("Nnx")
        return self.norm(self.dense(x), use_running_average=not train)


def linen(seed: int, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """A model and the option with its variables."""
    model = Linen(**fields)
    return model, {"variables": model.init(jax.random.key(seed), ROWS)}


MODELS: dict[str, Callable[[int], tuple[Any, dict[str, Any]]]] = {
    "Linen": linen,
    "NNX": lambda seed: (Nnx(seed), {}),
}
CALLS: dict[str, Callable[..., Any]] = {
    "examine": lambda model, options: tools.examine(model, ROWS, **options),
    "recalibrate": lambda model, options: tools.recalibrate(model, [ROWS], **options),
    "layer by layer": lambda model, options: tools.recalibrate(
        model, [ROWS], layer_by_layer=True, **options
    ),
}


def numbers(found: Any) -> list[np.ndarray]:
    """The statistics in what a tool returned."""
    if isinstance(found, tools.Examination):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(found.batch)]
    if isinstance(found, nnx.Module):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(found, nnx.BatchStat))]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found["batch_stats"])]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("system", MODELS)
def test_the_second_call_compiles_nothing(system: str, call: str) -> None:
    """It traces the model once, to find its norms, and gives the result of its own arrays."""
    results = []
    for train in (None, False):
        for seed in (1, 2):
            # A function written in place is another object each time.
            given = {} if train is None else {"run": lambda model, x, train=train: model(x, train)}
            model, options = MODELS[system](seed)
            TRACED.clear()
            results.append(CALLS[call](model, {**options, **given}))
        assert len(TRACED) == 1
    for seed in (0, 1):
        for a, b in zip(numbers(results[seed]), numbers(results[2 + seed]), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (numbers(results[0])[0] != numbers(results[1])[0]).any()


def test_fields_that_cannot_be_compared() -> None:
    """A module with a list as a field works too; Flax gives it no hash."""
    model, options = linen(0, sizes=np.array([4]))
    for call in CALLS.values():
        call(model, options)
        call(model, options)


def applied(model: Any, batch: Any, extra: Any) -> Any:
    """Takes another argument."""
    return model(batch, extra)


SCALE = 1.0
STATE = {"scale": 1.0}


def scaled(model: Any, batch: Any) -> Any:
    """Reads a global number."""
    return model(SCALE * batch)


def scaled_inside(model: Any, batch: Any) -> Any:
    """Reads it in a function of its own."""
    return (lambda x: model(x * scaled_by(SCALE)))(batch)


def scaled_by(factor: float) -> float:
    """Reads a global dictionary."""
    return factor * STATE["scale"]


def test_what_a_run_reads_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed number is used in the next call, wherever the function has it from."""
    model, options = linen(0)
    teacher = nnx.Linear(5, 5, rngs=nnx.Rngs(0))
    teacher.kernel[...], factor = jnp.eye(5), 1.0

    def taught(model: Any, batch: Any) -> Any:
        return model(teacher(batch))

    def closed(model: Any, batch: Any) -> Any:
        return model(factor * batch)

    runs = [scaled, scaled_inside, taught, closed, functools.partial(scaled)]
    want = numbers(tools.recalibrate(model, [ROWS], **options))
    for run in runs:
        found = numbers(tools.recalibrate(model, [ROWS], run=run, **options))
        np.testing.assert_allclose(found[0], want[0], 1e-6, 1e-6)
    factor = 2.0
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    teacher.kernel[...] = 2 * jnp.eye(5)
    want = numbers(tools.recalibrate(model, [2 * ROWS], **options))
    for run in runs:
        found = numbers(tools.recalibrate(model, [ROWS], run=run, **options))
        np.testing.assert_allclose(found[0], want[0], 1e-5, 1e-5)
    monkeypatch.setitem(STATE, "scale", 0.5)
    found = numbers(tools.recalibrate(model, [ROWS], run=scaled_inside, **options))
    np.testing.assert_allclose(
        found[0], numbers(tools.recalibrate(model, [ROWS], **options))[0], 1e-5
    )


def test_functions_that_read_only_what_is_fixed() -> None:
    """Arguments, modules, classes, numbers and other functions of that kind are fixed; objects are not."""
    flag, listed = True, [1]
    assert meaning_of(lambda model, batch: model(jnp.tanh(batch), train=flag)) is not None
    assert meaning_of(lambda model, batch: model(batch["image"], train=False)) is not None
    assert meaning_of(lambda model, batch: model(batch, listed[0])) is None
    assert meaning_of(functools.partial(applied, extra=listed)) is None
    assert meaning_of(scaled) is not None and meaning_of(scaled_inside) is None
    assert meaning_of(lambda: later) is None  # pyright: ignore[reportUnboundVariable]
    assert meaning_of(Nnx().__call__) is None and meaning_of(KEY) is None

    later = 1


def test_arrays_are_not_kept() -> None:
    """What is kept for the next call holds no arrays of the model."""
    model, options = linen(3)
    tools.recalibrate(model, [ROWS], **options)
    kernel = options["variables"]["params"]["Dense_0"]["kernel"]
    before = len(jax.live_arrays())
    del options
    kernel.delete()
    assert len(jax.live_arrays()) < before
