"""Norms whose class overrides ``__call__``: the tools see the call of the norm itself."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx, tools


def around(base: Any) -> Any:
    """A subclass that changes the input and the output, and has its own argument for the mode."""

    class Around(base):
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            y = super().__call__(jax.nn.relu(x) - 3, use_running_average=not train)
            return jnp.maximum(y, -0.5)

    return Around


def twice(base: Any) -> Any:
    """A subclass of such a subclass, which changes the input once more."""

    class Twice(around(base)):
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            return super().__call__(2 * x, train)

    return Twice


def mixed(base: Any) -> Any:
    """A subclass that has all of this from a mixin, which has a base of its own."""

    class Base:
        pass

    class Mixin(Base):
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            parent: Any = super()
            y = parent.__call__(jax.nn.relu(x) - 3, use_running_average=not train)
            return jnp.maximum(y, -0.5)

    return type("Mixed", (Mixin, base), {"__module__": __name__})


def with_setup(base: Any) -> Any:
    """A subclass that has a layer of its own, which `setup` makes."""

    class WithSetup(base):
        def setup(self) -> None:
            self.shift = nn.Dense(3, kernel_init=nn.initializers.zeros, bias_init=MINUS_THREE)

        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = jax.nn.relu(x) + self.shift(x)
            return jnp.maximum(super().__call__(x, use_running_average=not train), -0.5)

    return WithSetup


def by_method(base: Any) -> Any:
    """A subclass that calls the norm in a method of its own."""

    class ByMethod(base):
        def forward(self, x: jax.Array) -> jax.Array:
            return super().__call__(jax.nn.relu(x) - 3)

    return ByMethod


def reading_twice(x: jax.Array) -> jax.Array:
    """What the norm in `twice` reads."""
    return jax.nn.relu(2 * x) - 3


def ignoring(base: Any) -> Any:
    """A subclass that does not call the norm."""

    class Ignoring(base):
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            del train
            return x

    return Ignoring


MINUS_THREE = nn.initializers.constant(-3)
EVO: Any = jnl.EvoNormB0


class Evo(EVO):
    """A subclass of a norm that is made from a recipe."""

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the norm of twice the input."""
        return super().__call__(2 * x, use_running_average=not train)


STATIC = functools.partial(nnx.jit, static_argnames="use_running_average")
X = jax.random.normal(jax.random.key(0), (64, 3))
LINEN = (nn.BatchNorm, jnl.BatchNorm)
NNX = (nnx.BatchNorm, jnx.BatchNorm)
BASES = (*LINEN, *NNX)


def evaluate(model: Any, x: jax.Array) -> jax.Array:
    """Evaluates a model of this file."""
    return model(x, False)


def made(kind: Any) -> tuple[Any, Any]:
    """A layer and its variables, None in NNX."""
    if issubclass(kind, nnx.Module):
        return kind(3, rngs=nnx.Rngs(0)), None  # pyright: ignore[reportCallIssue]
    return kind(), kind().init(jax.random.key(0), X, True)


def stats_of(model: Any, variables: Any) -> tuple[np.ndarray, np.ndarray]:
    """The running mean and variance."""
    if variables is None:
        return np.asarray(model.mean[...]), np.asarray(model.var[...])
    stats = variables["batch_stats"]
    return np.asarray(stats["mean"]), np.asarray(stats["var"])


def recalibrated(model: Any, variables: Any, run: Callable[..., Any] = evaluate) -> tuple[Any, Any]:
    """The model and its variables with re-estimated statistics."""
    result = tools.recalibrate(model, [X], variables=variables, run=run)
    return (result, None) if variables is None else (model, result)


def assert_statistics_of(read: jax.Array, model: Any, variables: Any) -> None:
    """Running statistics are those of ``read``, and `examine` finds nothing to change."""
    mean, var = stats_of(model, variables)
    np.testing.assert_allclose(mean, read.mean(0), rtol=1e-5)
    np.testing.assert_allclose(var, read.var(0), rtol=1e-5)
    found = tools.examine(model, X, variables=variables, run=evaluate)
    assert found.output_change < 1e-5
    assert all(layer.z < 1e-5 for layer in found.layers.values())


@pytest.mark.parametrize(
    ("base", "subclass"),
    [*itertools.product(BASES, [around, twice, mixed]), *((base, with_setup) for base in LINEN)],
)
def test_statistics_are_of_what_the_norm_reads(base: Any, subclass: Callable[..., Any]) -> None:
    """Not of what the subclass reads."""
    read = reading_twice(X if subclass is twice else X / 2)
    model, variables = recalibrated(*made(subclass(base)))
    assert_statistics_of(read, model, variables)


@pytest.mark.parametrize("base", BASES)
def test_micro_batches(base: Any) -> None:
    """Accumulated statistics are those of a step with the whole batch."""
    model, variables = made(around(base))
    after = tools.accumulate(
        lambda model, x: model(x, True).sum(), model, X, micro_batches=4, variables=variables
    ).updated
    if variables is None:
        nnx.update(model, after)
        whole = made(around(base))[0]
        whole(X, True)
        expected = stats_of(whole, None)
    else:
        variables = {**variables, **after}
        _, updated = model.apply(made(around(base))[1], X, True, mutable=["batch_stats"])
        expected = stats_of(None, updated)
    for ours, theirs in zip(stats_of(model, variables), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("base", "subclass"),
    [*itertools.product(BASES, [mixed, twice]), *((base, with_setup) for base in LINEN)],
)
@pytest.mark.parametrize("affine", [False, True])
def test_frozen(base: Any, subclass: Callable[..., Any], affine: bool) -> None:
    """A frozen layer evaluates, whichever mode the model asks for in its own way."""
    model, variables = recalibrated(*made(subclass(base)))
    frozen = tools.freeze(model, variables=variables, affine=affine)
    if variables is None:
        expected, y = model(X, False), frozen(X, True)
        np.testing.assert_array_equal(frozen.mean[...], model.mean[...])
        assert type(tools.unfreeze(frozen)) is type(model)
    else:
        expected = model.apply(variables, X, False)
        y, updated = frozen.apply(variables, X, True, mutable=["batch_stats"])
        np.testing.assert_array_equal(updated["batch_stats"]["mean"], stats_of(None, variables)[0])
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("base", BASES)
def test_every_tool_takes_a_frozen_one(base: Any) -> None:
    """Statistics of a frozen layer can be estimated again."""
    model, variables = made(around(base))
    frozen = tools.freeze(model, variables=variables)
    mean, _ = stats_of(*recalibrated(frozen, variables))
    np.testing.assert_allclose(mean, reading_twice(X / 2).mean(0), rtol=1e-5)


@pytest.mark.parametrize("base", LINEN)
@pytest.mark.parametrize("subclass", [around, with_setup])
def test_swapped(base: Any, subclass: Callable[..., Any]) -> None:
    """Another norm takes the place of the norm, and what the subclass adds stays."""
    model, variables = made(subclass(base))
    swapped, new = tools.swap(model, "group", variables=variables, num_groups=3)
    norm = jnl.GroupNorm(3, epsilon=model.epsilon)
    expected: Any = norm.apply({"params": new["params"]}, reading_twice(X / 2))
    y: Any = swapped.apply(new, X, True)
    np.testing.assert_allclose(y, jnp.maximum(expected, -0.5), rtol=1e-5)


@pytest.mark.parametrize("base", NNX)
def test_a_norm_that_a_method_calls(base: Any) -> None:
    """In NNX, too, where classes and not calls are intercepted."""

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.norm = by_method(base)(3, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.norm.forward(x)

    after = tools.recalibrate(Net(), [X], run=lambda model, x: model(x))
    np.testing.assert_allclose(after.norm.mean[...], reading_twice(X / 2).mean(0), rtol=1e-5)
    frozen = tools.freeze(after)
    frozen(X)
    np.testing.assert_array_equal(frozen.norm.mean[...], after.norm.mean[...])


RECIPES: Any = (jnl.EvoNormB0, jnl.BatchRenorm, jnl.MeanOnlyBatchNorm, jnl.SwitchableNorm)


@pytest.mark.parametrize("base", RECIPES)
def test_a_frozen_model_that_is_a_norm_from_a_recipe(base: Any) -> None:
    """What the subclass adds stays, also if the norm inherits its call and what it says."""
    x = X[:, None, None]
    model = around(base)()
    variables = model.init(jax.random.key(0), x, True)
    y = tools.freeze(model, variables=variables).apply(variables, x, True)
    np.testing.assert_array_equal(y, model.apply(variables, x, False))


def test_a_norm_from_a_recipe() -> None:
    """The same for norms that inherit their call."""
    model, variables = made(Evo)
    _, updated = model.apply(variables, X, True, mutable=["batch_stats"])
    after = tools.accumulate(
        lambda model, x: model(x, True).sum(), model, X, micro_batches=2, variables=variables
    ).updated
    np.testing.assert_allclose(stats_of(None, after), stats_of(None, updated), rtol=1e-5)


@pytest.mark.every_case
@pytest.mark.parametrize("base", LINEN)
def test_a_decorated_class_does_not_override(base: Any) -> None:
    """`nn.remat` makes a subclass with a call of its own."""
    model = nn.remat(base)(use_running_average=True)
    variables = model.init(jax.random.key(0), X)
    after = tools.recalibrate(model, [X], variables=variables)
    np.testing.assert_allclose(stats_of(None, after)[0], X.mean(0), atol=1e-6)
    tools.freeze(model, variables=variables).apply(variables, X)
    swapped, new = tools.swap(model, "layer", variables=variables)
    swapped.apply(new, X)


@pytest.mark.parametrize("base", BASES)
def test_a_decorated_call_does_not_override(base: Any) -> None:
    """A subclass that only compiles the norm's call is that norm."""
    compiled: Any = nn.jit if base in LINEN else STATIC

    Compiled: Any = type("Compiled", (base,), {"__call__": compiled(base.__call__)})

    if base in LINEN:
        model = Compiled(use_running_average=True)
        variables = model.init(jax.random.key(0), X)
    else:
        model, variables = made(Compiled)
    after = recalibrated(model, variables, run=lambda model, x: model(x))
    np.testing.assert_allclose(stats_of(*after)[0], X.mean(0), atol=1e-6)
    swapped: Any = tools.swap(model, "layer", variables=variables)
    y: Any = swapped(X) if variables is None else swapped[0].apply(swapped[1], X)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)


@pytest.mark.every_case
@pytest.mark.parametrize("base", LINEN)
def test_a_decorated_class_may_override(base: Any) -> None:
    """The decorated call is that of the subclass, not the norm's."""
    model = nn.remat(around(base), static_argnums=(2,))()
    model, variables = recalibrated(model, model.init(jax.random.key(0), X, True))
    np.testing.assert_allclose(
        stats_of(None, variables)[0], reading_twice(X / 2).mean(0), rtol=1e-5
    )
    y = tools.freeze(model, variables=variables).apply(variables, X, True)
    np.testing.assert_allclose(y, model.apply(variables, X, False), rtol=1e-6)
    for swappable in (model, tools.freeze(model, variables=variables, affine=True)):
        swapped, new = tools.swap(swappable, "layer", variables=variables)
        y: Any = swapped.apply(new, X, True)
        assert y.min() == -0.5  # of the subclass


TOOLS: dict[str, Callable[[Any, Any], Any]] = {
    "recalibrate": lambda model, v: tools.recalibrate(model, [X], variables=v, run=evaluate),
    "examine": lambda model, v: tools.examine(model, X, variables=v, run=evaluate),
    "accumulate": lambda model, v: tools.accumulate(
        lambda model, x: model(x, True).sum(), model, X, micro_batches=2, variables=v
    ),
    "swap": lambda model, v: (
        tools.swap(model, "group", num_groups=3)
        if v is None
        else tools.swap(model, "group", variables=v, num_groups=3)[0].apply(v, X, True)
    ),
    "freeze": lambda model, v: (
        tools.freeze(model) if v is None else tools.freeze(model, variables=v).apply(v, X, True)
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("base", [nn.BatchNorm, jnx.BatchNorm])
def test_a_class_that_does_not_call_the_norm_is_refused(base: Any, tool: str) -> None:
    """How it keeps running statistics is not known."""
    model, variables = made(ignoring(base))
    if variables == {}:  # Linen creates variables in the call
        variables = {"params": {}, "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    with pytest.raises(
        ValueError, match=rf"tools.{tool} supports .*Ignoring.*without calling super"
    ):
        TOOLS[tool](model, variables)


class Says:
    """Says how a norm keeps its statistics."""

    @nn.nowrap
    def running_norm(self) -> tools.RunningNorm:
        """Says it."""
        return tools.RunningNorm(axis=-1, epsilon=1e-5, momentum=0.9)


def normalized(x: jax.Array, stats: jn.RunningStats, evaluating: bool) -> jax.Array:
    """Batch norm, without an update of ``stats``."""
    return jn.batch_norm_inference(x, stats) if evaluating else jn.batch_norm(x, stats)[0]


class Computes(nn.Module):
    """Computes a norm of a user's own."""

    use_running_average: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Normalizes."""
        evaluating = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        mean = self.variable("batch_stats", "mean", jnp.zeros, 3)
        var = self.variable("batch_stats", "var", jnp.ones, 3)
        return normalized(x, jn.RunningStats(mean.value, var.value), evaluating)


class ComputesNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, num_features: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.mean = nnx.BatchStat(jnp.zeros(num_features))
        self.var = nnx.BatchStat(jnp.ones(num_features))

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Normalizes."""
        return normalized(x, jn.RunningStats(self.mean[...], self.var[...]), use_running_average)


class Below(Says, Computes):
    """A norm that says it in a mixin."""


class BelowNnx(Says, ComputesNnx):
    """The same in NNX."""


class Above(Computes):
    """A norm that says it in a subclass."""

    running_norm = Says.running_norm


class AboveNnx(ComputesNnx):
    """The same in NNX."""

    running_norm = Says.running_norm


@pytest.mark.parametrize("base", [Below, Above, BelowNnx, AboveNnx])
def test_a_norm_of_several_classes(base: Any) -> None:
    """What says how it keeps its statistics need not be what computes it."""
    model, variables = recalibrated(*made(around(base)))
    read = reading_twice(X / 2)
    assert_statistics_of(read, model, variables)


class Speaking(jnl.BatchNorm):
    """A subclass that says itself how it keeps its statistics."""

    running_norm = jnl.BatchNorm.running_norm


class SpeakingNnx(jnx.BatchNorm):
    """The same in NNX."""

    running_norm = jnx.BatchNorm.running_norm


@pytest.mark.parametrize("kind", [Speaking, SpeakingNnx])
def test_swap_refuses_a_norm_that_speaks_for_itself(kind: Any) -> None:
    """It may compute anything."""

    def swapped() -> None:
        if kind is SpeakingNnx:
            tools.swap(SpeakingNnx(3, rngs=nnx.Rngs(0)), "layer")
            return
        model = Speaking(use_running_average=True)
        new, variables = tools.swap(model, "layer", variables=model.init(jax.random.key(0), X))
        new.apply(variables, X)

    with pytest.raises(ValueError, match="has a method running_norm of its own"):
        swapped()
