"""Linen and NNX agree bit for bit in outputs, gradients and state of every norm, over training steps."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx
from tests.modules import (
    ACTIVATIONS,
    CASES,
    KEY,
    MASK,
    OPTIONS,
    WEIGHTS,
    Fields,
    X,
    assert_close,
    assert_equal,
    called,
    compiled,
    features_of,
    flat,
    inits,
    load,
    loose,
    moved,
    nnx_norm,
    normal,
    ramp,
)
from tests.selecting import thorough_but

# Options that Flax's NNX classes lack or handle incorrectly.
MORE: dict[str, tuple[str, Fields]] = {
    "BatchNorm, two axes": ("BatchNorm", {"axis": (1, -1)}),
    "BatchNorm, other two": ("BatchNorm", {"axis": (2, 0), "use_scale": False}),
    "BatchNorm, channels first": ("BatchNorm", {"axis": 1, "unbiased": True}),
    "BatchNorm, average": ("BatchNorm", {"momentum": None}),
    "BatchNorm, untracked": ("BatchNorm", {"track_running_stats": False}),
    "BatchNorm, activation": ("BatchNorm", {"activation": "gelu"}),
    "BatchNorm, saving": ("BatchNorm", {"activation": "leaky_relu", "save_as": "output"}),
    "InstanceNorm, tracked": ("InstanceNorm", {"track_running_stats": True, "momentum": 0.5}),
    "InstanceNorm, average": (
        "InstanceNorm",
        {"track_running_stats": True, "momentum": None, "unbiased": True, "feature_axes": (1, 3)},
    ),
    "RMSNorm, offset": ("RMSNorm", {"scale_offset": 1.0}),
    "RMSNorm, partial": ("RMSNorm", {"fraction": 0.25}),
    "GroupNorm, activation": ("GroupNorm", {"num_groups": 4, "activation": "silu"}),
    "GroupNorm, channels first": ("GroupNorm", {"num_groups": 2, "feature_axes": 1}),
    "LocalResponseNorm": ("LocalResponseNorm", {"size": 4, "alpha": 0.5, "k": 2.0}),
}
ALL = {**{f"{n}, {o}": (n, OPTIONS[n][o]) for n, o in CASES}, **MORE}
HALF = ["BatchNorm, default", "InstanceNorm, tracked", "LayerNorm, default", "RMSNorm, offset"]
HALF += ["GroupNorm, size", "LocalResponseNorm"]
BATCHES = [X, 2 * X[::-1] + 1]


def linen_step(layer: nn.Module, variables: Any, x: jax.Array, mask: Any) -> Any:
    """The output of a training step, the updated variables, and the output of an evaluation afterwards."""

    def loss(params: Any) -> Any:
        given = {**variables, "params": params}
        call: Fields = {"use_running_average": False, **mask}
        y, updated = layer.apply(given, x, mutable=["batch_stats"], **call)
        return (y * normal(y.shape, y.dtype, seed=2)).sum(), (y, updated)

    params = variables.get("params", {})
    grads, (y, updated) = jax.grad(loss, has_aux=True)(params)
    moved = jax.tree.map(lambda p, g: p - g / 16, params, grads)
    after = {**variables, **updated, "params": moved}
    return y, after, layer.apply(after, x, use_running_average=True, **mask)


def nnx_step(module: Any, x: jax.Array, mask: Any) -> Any:
    """The same for an NNX module, which stores the updated variables."""

    def loss(module: Any) -> Any:
        y = module(x, use_running_average=False, **mask)
        return (y * normal(y.shape, y.dtype, seed=2)).sum(), y

    grads, y = nnx.grad(loss, has_aux=True)(module)
    params = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda p, g: p - g / 16, params, grads))
    return y, module(x, use_running_average=True, **mask)


def compare(layer: nn.Module, module: Any, batches: list[jax.Array], mask: Any = None) -> None:
    """Compares every bit of all results of both, starting from the same variables."""
    masked = {} if mask is None else {"mask": mask}
    init = partial(layer.init, use_running_average=False)
    variables = compiled(lambda key: init(key, batches[0]), KEY)
    load(module, flat(variables))
    step = jax.jit(partial(linen_step, layer))
    for x in batches:
        y, variables, evaluated = step(variables, x, masked)
        assert_equal((y, evaluated), called(module, nnx_step, x, masked))
        expected, found = flat(variables), flat(module)
        assert found.keys() == expected.keys() and moved(expected, found) == set()


@pytest.mark.parametrize("case", thorough_but(ALL, *HALF))
def test_norms_of_activations(case: str) -> None:
    """Norms of activations agree with every option."""
    name, fields = ALL[case]
    fields = fields if name == "LocalResponseNorm" else {**fields, **inits(name)}
    compare(getattr(jnl, name)(**fields), nnx_norm(jnx, name, **fields), BATCHES)


@pytest.mark.sampled
@pytest.mark.parametrize("with_nan", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_masked(name: str, with_nan: bool) -> None:
    """With an elementwise mask, also over NaN, both agree in training and evaluation."""
    fields = inits(name)
    batches = [jnp.where(MASK, x, jnp.nan) if with_nan else x for x in BATCHES]
    compare(getattr(jnl, name)(**fields), nnx_norm(jnx, name, **fields), batches, MASK)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "dtypes",
    [
        ("bfloat16", "float32", None),
        ("float16", "bfloat16", "float16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", HALF)
def test_half_precision(case: str, dtypes: tuple[str, str, str | None]) -> None:
    """Both agree for several combinations of 16-bit inputs, parameters and results."""
    name, fields = ALL[case]
    x_dtype, param_dtype, dtype = dtypes
    fields = {**fields, "dtype": dtype}
    if name != "LocalResponseNorm":
        fields |= {"param_dtype": jnp.dtype(param_dtype), **inits(name)}
    batches = [x.astype(x_dtype) for x in BATCHES]
    compare(getattr(jnl, name)(**fields), nnx_norm(jnx, name, **fields), batches)


def test_complex() -> None:
    """Both agree for complex inputs and parameters, with a complex running mean."""
    fields: Fields = {"param_dtype": jnp.complex64, **inits("BatchNorm")}
    x = jax.lax.complex(X, X[::-1])
    layer, module = jnl.BatchNorm(False, **fields), nnx_norm(jnx, "BatchNorm", **fields)
    variables = compiled(layer.init, KEY, x)
    load(module, flat(variables))
    y, updated = compiled(partial(layer.apply, mutable=["batch_stats"]), variables, x)
    assert_equal(called(module, lambda m, x: m(x), x), y)
    assert_equal(
        (module.mean[...], module.var[...]),
        (updated["batch_stats"]["mean"], updated["batch_stats"]["var"]),
    )


def wrapped(name: str, kind: str, **fields: Any) -> tuple[nn.Module, Any]:
    """A wrapper in both systems around the same layer."""
    layers: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
        "dense": (lambda: nn.Dense(3), lambda r: nnx.Linear(32, 3, rngs=r)),
        "conv": (lambda: nn.Conv(3, (3, 1)), lambda r: nnx.Conv(32, 3, (3, 1), rngs=r)),
    }
    of_linen, of_nnx = layers[kind]
    rngs = nnx.Rngs(0)
    return getattr(jnl, name)(of_linen(), **fields), getattr(jnx, name)(
        of_nnx(rngs), rngs=rngs, **fields
    )


WRAPPED: dict[str, tuple[str, str, Fields]] = {
    **{f"{name}, {kind}": (name, kind, {}) for name in WEIGHTS for kind in ("dense", "conv")},
    "SpectralNorm, steps": ("SpectralNorm", "dense", {"n_steps": 2, "epsilon": 1e-3}),
    "SpectralNorm, exact": ("SpectralNorm", "dense", {"n_steps": None}),
    "SpectralNorm, none": ("SpectralNorm", "dense", {"n_steps": 0}),
    "SpectralNorm, half": (
        "SpectralNorm",
        "dense",
        {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16},
    ),
    "WeightNorm, one": ("WeightNorm", "conv", {"feature_axes": None, "scale_init": ramp}),
    "WeightNorm, rows": ("WeightNorm", "dense", {"feature_axes": 0, "scale_init": None}),
    "WeightNorm, bare": ("WeightNorm", "dense", {"use_scale": False, "epsilon": 1e-3}),
    "WeightNorm, half": (
        "WeightNorm",
        "dense",
        {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16},
    ),
    "WeightStandardization, gain": (
        "WeightStandardization",
        "conv",
        {"use_gain": True, "gain_init": ramp},
    ),
    "WeightStandardization, rows": ("WeightStandardization", "dense", {"feature_axes": 0}),
    "ScaledWeightStandardization": (
        "ScaledWeightStandardization",
        "conv",
        {"use_gain": True, "gain_init": ramp, "epsilon": 1e-2},
    ),
    "MagnitudePreserving": ("MagnitudePreserving", "dense", {"feature_axes": 0, "epsilon": 0.1}),
    "Reparameterized": ("Reparameterized", "conv", {"function": jnp.tanh}),
}


@pytest.mark.parametrize(
    "case", thorough_but(WRAPPED, *(f"{name}, dense" for name in WEIGHTS), "SpectralNorm, half")
)
def test_norms_of_weights(case: str) -> None:
    """Norms of weights agree for a matrix and a convolution, with every option."""
    name, kind, fields = WRAPPED[case]
    with loose() if "half" in case else nullcontext():  # Flax's layers promote
        compare(*wrapped(name, kind, **fields), BATCHES)


@pytest.mark.parametrize("option", ["axes", "last axis"])
def test_group_norm_of_any_axes_is_that_of_linen(option: str) -> None:
    """Flax's NNX is wrong with ``reduction_axes``; its Linen agrees with ours."""
    fields = {**OPTIONS["GroupNorm"][option], **inits("GroupNorm")}
    layer = nn.GroupNorm(**fields)
    with loose():
        expected = compiled(lambda x: layer.init_with_output(KEY, x)[0], X)
    assert_close(called(nnx_norm(jnx, "GroupNorm", **fields), lambda m, x: m(x), X), expected, 1e-5)


def test_a_model_of_all() -> None:
    """A model with one of each norm has the same losses in both systems, and the same evaluation."""
    fields: Fields = {"momentum": 0.5}
    norms = [
        ("BatchNorm", fields),
        ("GroupNorm", {"num_groups": 4}),
        ("InstanceNorm", {"track_running_stats": True}),
        ("LayerNorm", {}),
        ("RMSNorm", {}),
        ("LocalResponseNorm", {}),
    ]

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
            for name, fields in norms:
                x = nn.Dense(32, name=f"dense_{name}")(x)
                norm = getattr(jnl, name)(**fields, name=f"norm_{name}")
                x = norm(x, use_running_average=use_running_average)
            wrapper = jnl.SpectralNorm(nn.Dense(32, name="last"), name="spectral")
            return wrapper(x, use_running_average=use_running_average)

    class Nnx(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            for name, fields in norms:
                setattr(self, f"dense_{name}", nnx.Linear(32, 32, rngs=rngs))
                setattr(self, f"norm_{name}", getattr(jnx, name)(32, rngs=rngs, **fields))
            self.last = nnx.Linear(32, 32, rngs=rngs)
            self.spectral = jnx.SpectralNorm(self.last, rngs=rngs)

        def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
            for name, _ in norms:
                x = getattr(self, f"dense_{name}")(x)
                x = getattr(self, f"norm_{name}")(x, use_running_average=use_running_average)
            return self.spectral(x, use_running_average=use_running_average)

    layer, module = Linen(), Nnx(nnx.Rngs(0))
    variables = compiled(lambda key: layer.init(key, X, False), KEY)
    load(module, renamed(flat(variables)))
    step = jax.jit(partial(linen_step, layer))
    for x in BATCHES:
        y, variables, evaluated = step(variables, x, {})
        assert_close(called(module, nnx_step, x, {}), (y, evaluated), 1e-4)
    assert_close(flat(module), renamed(flat(variables)), 1e-4)


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Removes the layer's name, which only Linen has, from the wrapper's state."""
    return {n.replace("spectral/last/", "spectral/"): a for n, a in values.items()}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_feature_sizes(name: str) -> None:
    """Linen infers the number of features from the input; NNX is told, and a wrong number is an error."""
    groups = {"num_groups": 4} if name == "GroupNorm" else {}
    wrong = getattr(jnx, name)(16, rngs=nnx.Rngs(0), **groups)
    assert features_of(name) == 32
    with pytest.raises(ValueError, match="must have the shape of the feature axes"):
        nnx.eval_shape(lambda m, x: m(x), wrong, X)


@pytest.mark.parametrize("name", ["BatchNorm", "SpectralNorm"])
def test_bridges_of_flax(name: str) -> None:
    """`nnx.bridge` works in both directions, and updates the state."""
    linen: Any = jnl.BatchNorm() if name == "BatchNorm" else jnl.SpectralNorm(nn.Dense(3))

    class Wrapped(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            layer = nnx.Linear(32, 3, rngs=rngs)
            batch = name == "BatchNorm"
            self.norm = (
                jnx.BatchNorm(32, rngs=rngs) if batch else jnx.SpectralNorm(layer, rngs=rngs)
            )

        def __call__(self, x: jax.Array, use_running_average: bool) -> Any:
            return self.norm(x, use_running_average=use_running_average)

    x = X[0, 0]
    in_nnx = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(x, use_running_average=False)
    before = flat(in_nnx)
    in_nnx(x, use_running_average=False, mutable=["batch_stats"])
    names = {"mean", "var"} if name == "BatchNorm" else {"kernel/u", "kernel/sigma"}
    assert {n for n in moved(before, flat(in_nnx)) if not n.endswith("count")} == names  # of RNGs

    in_linen = nnx.bridge.to_linen(Wrapped)
    variables = in_linen.init(KEY, x, use_running_average=False)
    _, updated = in_linen.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(variables["batch_stats"]),
            jax.tree.leaves(updated["batch_stats"]),
            strict=True,
        )
    )
