"""`SpectralNorm`, `WeightNorm` and `WeightStandardization` in NNX; the first two replace Flax's."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxnorm import nnx as jnx
from tests.modules import (
    WEIGHTS,
    Fields,
    assert_close,
    called,
    flat,
    loose,
    moved,
    normal,
    own,
)
from tests.nnx.models import Bar, Make, conv, forward, linear, wrapper_of
from tests.selecting import thorough_but

X = normal((5, 6))


CASES: dict[str, tuple[str, Make, Fields]] = {
    "spectral": ("SpectralNorm", linear, {}),
    "spectral, steps": ("SpectralNorm", linear, {"n_steps": 3, "epsilon": 1e-8}),
    "spectral, none": ("SpectralNorm", linear, {"n_steps": 0}),
    "spectral, conv": ("SpectralNorm", conv, {}),
    "spectral, layers": ("SpectralNorm", Bar, {}),
    "weight": ("WeightNorm", linear, {}),
    "weight, all": ("WeightNorm", linear, {"variable_filter": lambda path, value: True}),
    "weight, bare": ("WeightNorm", linear, {"use_scale": False, "epsilon": 1e-3}),
    "weight, one": ("WeightNorm", linear, {"feature_axes": None}),
    "weight, rows": ("WeightNorm", linear, {"feature_axes": 0}),
    "weight, conv": ("WeightNorm", conv, {"feature_axes": (0, -1)}),
    "weight, layers": ("WeightNorm", Bar, {"variable_filter": nnx.PathContains("layers")}),
}


def build(system: Any, case: str, seed: int = 0) -> Any:
    """A wrapper for a case, from Flax or from us."""
    name, layer, fields = CASES[case]
    rngs = nnx.Rngs(seed)
    return getattr(system, name)(layer(rngs), rngs=rngs, **fields)


# --- the classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
def test_signature_is_that_of_flax(name: str) -> None:
    """Arguments, order and defaults match Flax's; a call also accepts the arguments of the layer."""
    ours, theirs = getattr(jnx, name), getattr(nnx, name)
    assert own(ours.__init__, theirs.__init__) == [] and ours.__name__ == name
    added = {
        "WeightNorm": ["use_running_average"],
        "SpectralNorm": ["args", "use_running_average", "kwargs"],
    }
    assert own(ours.__call__, theirs.__call__) == added[name]


@pytest.mark.parametrize("case", CASES)
def test_variables_are_those_of_flax(case: str) -> None:
    """Paths, types (scales are trained, as in Flax from 0.12.12), shapes, dtypes and initial values match."""
    ours, theirs = build(jnx, case), build(nnx, case)
    assert {n: (a.shape, a.dtype) for n, a in flat(ours).items()} == {
        n: (a.shape, a.dtype) for n, a in flat(theirs).items()
    }
    kinds = {path: type(v) for path, v in nnx.to_flat_state(nnx.state(ours))}
    for path, variable in nnx.to_flat_state(nnx.state(theirs)):
        assert kinds[path] is (nnx.Param if path[0] == "scales" else type(variable))
    bare = CASES[case][1](nnx.Rngs(0))
    assert moved(flat(bare), {n: flat(ours)[n] for n in flat(bare)}) == set()


@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
def test_attributes_are_those_of_flax(name: str) -> None:
    """All public attributes of Flax's wrapper are present and have the same values."""
    ours, theirs = (
        getattr(system, name)(linear(nnx.Rngs(0)), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        for system in (jnx, nnx)
    )
    for attribute, value in vars(theirs).items():
        if attribute not in ("layer_instance", "scales", "batch_stats") and attribute[0] != "_":
            assert getattr(ours, attribute) == value, attribute


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", thorough_but(CASES, *list(CASES)[::3]))
def test_checkpoints_of_flax_give_flax_answers(case: str) -> None:
    """Loaded with Flax's state as a plain dict, a wrapper gives Flax's results and gradients."""
    ours, theirs = build(jnx, case, 1), build(nnx, case)
    saved = jax.tree.map(
        lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape),
        nnx.to_pure_dict(nnx.state(theirs)),
    )
    state = nnx.state(ours)
    nnx.replace_by_pure_dict(state, saved)
    nnx.update(ours, state)
    # Flax's forward pass overwrites the kernel with the normalized one, so each call restores the saved one.
    kernels = {n: a for n, a in flat(ours).items() if not n.endswith(("u", "sigma"))}
    for training in (True, False):
        theirs = build(nnx, case)
        start = nnx.state(theirs)
        nnx.replace_by_pure_dict(start, saved)
        nnx.update(theirs, start)
        given = nnx.clone(ours)
        for wrapper in (given, theirs):
            wrapper.train() if training else wrapper.eval()
        y, grads = called(given, outcome, X)
        with loose():
            expected, expected_grads = called(theirs, outcome, X)
        assert_close(y, expected, 1e-4)
        gradients = flat(expected_grads)  # without those of scales, which 0.12.8 does not train
        assert_close({n: flat(grads)[n] for n in gradients}, gradients, 1e-4)
        stats = {n: a for n, a in flat(theirs).items() if n.endswith(("/u", "/sigma"))}
        assert_close({n: flat(given)[n] for n in stats}, stats, 1e-4)
        assert moved(kernels, {n: flat(given)[n] for n in kernels}) == set()


def outcome(module: Any, x: jax.Array) -> Any:
    """Output and gradients for a copy, and the changes that one call makes to the state."""

    def loss(module: Any, x: jax.Array) -> Any:
        y = module(x)
        return (y * normal(y.shape, seed=2)).sum(), y

    grads, y = nnx.grad(loss, has_aux=True)(nnx.clone(module), x)
    module(x)
    return y, grads


@pytest.mark.parametrize("name", WEIGHTS)
def test_dtypes(name: str) -> None:
    """Results have ``dtype``, or the promoted dtype of half-precision weights and float32 state or scales."""
    for dtype in (None, jnp.bfloat16, jnp.float32):
        layer = nnx.Linear(6, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        wrapper = wrapper_of(name, lambda _, layer=layer: layer, dtype=dtype)
        with loose():  # the layer is Flax's and promotes
            y = nnx.eval_shape(forward, wrapper, X.astype(jnp.bfloat16))
        assert y.dtype == (dtype or jnp.float32)
        assert layer.kernel[...].dtype == jnp.bfloat16
