"""Tools compile once for a model and ``run``, and never use a program that has become wrong."""

import functools
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples import lifecycle
from examples.models import ResNet20
from jaxnorm import nnx as jnx, tools
from jaxnorm.tools._model._meaning import Changeable, meaning_of
from tests.tools.models import KEY, ROWS


class Linen(nn.Module):
    """A dense layer and a norm."""

    sizes: Any = (4,)

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        """Notes that it is traced."""
        logging.warning("traced")
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(self.sizes[0])(x))


class Nnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, seed: int = 0) -> None:
        """Creates the layers."""
        rngs = nnx.Rngs(seed)
        self.dense, self.norm = nnx.Linear(5, 4, rngs=rngs), jnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: Any, train: bool = False) -> Any:
        """Notes that it is traced."""
        logging.warning("traced")
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
    "fold": lambda model, options: tools.fold(model, ROWS, **options),
}


def numbers(found: Any) -> list[np.ndarray]:
    """The statistics in what a tool returned, or the kernel of a folded model."""
    if isinstance(found, tools.Folded):
        state = found.variables or nnx.state(found.model, nnx.Param)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    if isinstance(found, tools.Examination):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(found.batch)]
    if isinstance(found, nnx.Module):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(found, nnx.BatchStat))]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found["batch_stats"])]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("system", MODELS)
def test_the_second_call_compiles_nothing(
    system: str, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It traces the model once, to find its norms, and gives the result of its own arrays.

    `fold` traces it once more, to follow its values.
    """
    results = []
    for train in (None, False):
        for seed in (1, 2):
            # A function written in place is another object each time.
            given = {} if train is None else {"run": lambda model, x, train=train: model(x, train)}
            model, options = MODELS[system](seed)
            caplog.clear()
            results.append(CALLS[call](model, {**options, **given}))
        assert caplog.messages == ["traced"] * (2 if call == "fold" else 1)
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


def is_fixed(value: Any) -> bool:
    """Whether the meaning of ``value`` cannot change unnoticed."""
    try:
        hash(meaning_of(value))
    except (Changeable, TypeError):
        return False
    return True


class Config:
    """A namespace of numbers."""

    scale = 1.0


class Conf:
    """An object with a number."""

    def __init__(self) -> None:
        """Sets it."""
        self.scale = 1.0


def with_attribute(model: Any, batch: Any) -> Any:
    """Reads an attribute of its own."""
    return model(batch * with_attribute.scale)  # pyright: ignore[reportFunctionMemberAccess]


def test_functions_that_read_only_what_is_fixed() -> None:
    """Arguments, libraries, numbers and functions of that kind are fixed; objects and modules are not."""
    flag, listed, module = True, [1, {"a": 2}], lifecycle
    get, conf, array, many = {"scale": 1.0}.get, Conf(), np.ones(3), [0] * 2000
    assert is_fixed(lambda model, batch: model(jnp.tanh(batch), train=flag))
    assert is_fixed(lambda model, batch: model(nn.relu(batch["image"]), train=False))
    assert is_fixed(scaled) and is_fixed(functools.partial(scaled)) and is_fixed(scaled_inside)
    names = frozenset({"a", "b"})
    assert is_fixed(lambda model, batch: {n: model(batch) for n in names})
    assert is_fixed(ResNet20()) and is_fixed(
        nn.Sequential([nn.Dense(3), nn.relu, jax.jit(nn.relu)])
    )
    reads = lambda model, batch: model(batch, listed[0])  # noqa: E731
    before = meaning_of(reads)
    assert before == meaning_of(reads)
    listed[1]["a"] = 3  # pyright: ignore[reportIndexIssue]
    assert before != meaning_of(reads)
    assert is_fixed(lambda model, batch: Linen()(batch)) and is_fixed(Linen())
    changeable: list[Any] = [
        lambda model, batch: model(batch * get("scale")),
        lambda model, batch: model(batch * array),
        lambda model, batch: model(batch, many[0]),
        lambda model, batch: model(batch * conf.scale),
        lambda model, batch: model(batch * module.NORM["momentum"]),
        lambda: later,  # pyright: ignore[reportUnboundVariable]
        functools.partial(applied, extra=array),
        Nnx().__call__,
        Linen(np.array([4])),
    ]
    assert not any(map(is_fixed, changeable))
    with_attribute.scale = 1.0  # pyright: ignore[reportFunctionMemberAccess]
    before = meaning_of(with_attribute)
    with_attribute.scale = 2.0  # pyright: ignore[reportFunctionMemberAccess]
    assert meaning_of(with_attribute) != before
    before = meaning_of(lambda model, batch: model(batch * Config.scale))
    Config.scale = 2.0
    assert meaning_of(lambda model, batch: model(batch * Config.scale)) != before

    later = 1


def activation(x: Any) -> Any:
    """Used by the model below."""
    return x


class Helped(nn.Module):
    """A model whose code reads a global function, and a field whose type matters."""

    factor: Any = 1

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Multiplies by 2 if the field is a float."""
        x = x * (2.0 if isinstance(self.factor, float) else 1.0)
        return nn.BatchNorm(use_running_average=True)(activation(x))


class Configured(nnx.Module):
    """A model with a configuration."""

    def __init__(self) -> None:
        """Creates the norm."""
        self.conf, self.norm = Conf(), jnx.BatchNorm(5, use_running_average=True, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        """Multiplies by the number in it."""
        return self.norm(self.conf.scale * x)


def test_what_a_model_reads_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that the model's code calls, the types of its fields, and objects that it holds."""

    def mean(model: Any) -> Any:
        variables = {} if isinstance(model, nnx.Module) else {"variables": model.init(KEY, ROWS)}
        return numbers(tools.recalibrate(model, [ROWS], **variables))[0]

    want = ROWS.mean(0)
    np.testing.assert_allclose(mean(Helped(1)), want, 1e-5)
    np.testing.assert_allclose(mean(Helped(1.0)), 2 * want, 1e-5)
    monkeypatch.setitem(globals(), "activation", lambda x: 3 * x)
    np.testing.assert_allclose(mean(Helped(1)), 3 * want, 1e-5)
    model = Configured()
    np.testing.assert_allclose(mean(model), want, 1e-5)
    model.conf.scale = 2.0
    np.testing.assert_allclose(mean(model), 2 * want, 1e-5)


@pytest.mark.parametrize("system", MODELS)
def test_arrays_are_not_kept(system: str) -> None:
    """What is kept for the next call holds no arrays of the model."""
    model, options = MODELS[system](3)
    tools.recalibrate(model, [ROWS], **options)
    tree = options["variables"] if options else nnx.state(model)
    kept = [weakref.ref(array) for array in jax.tree.leaves(tree)]
    del model, options, tree
    gc.collect()
    assert not any(reference() is not None for reference in kept)
