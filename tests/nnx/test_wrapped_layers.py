"""The variables that NNX wrappers of weights do and do not write, and the wrappers' own options."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import nnx as jnx
from tests.modules import (
    WEIGHTS,
    Fields,
    assert_close,
    assert_equal,
    called,
    compiled,
    flat,
    loose,
    moved,
    normal,
    ramp,
)
from tests.nnx.models import Bar, Make, conv, forward, linear, without, wrapper_of

X = normal((5, 6))


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_kernel_is_never_written(name: str, training: bool) -> None:
    """The kernel stays the same bit for bit in every mode; Flax's forward pass normalizes it in place."""
    wrapper: Any = wrapper_of(name)
    theirs: Any = nnx.WeightNorm(linear(nnx.Rngs(0)), rngs=nnx.Rngs(0))
    for module in (wrapper, theirs):
        module.train() if training else module.eval()
    kernel = np.asarray(wrapper.layer_instance.kernel[...])
    params = flat(nnx.state(wrapper, nnx.Param))
    y = wrapper(X)
    assert moved(params, flat(nnx.state(wrapper, nnx.Param))) == set()
    assert not np.allclose(y, wrapper.layer_instance(X), atol=1e-2), "not normalized"
    with loose():
        theirs(X)
    assert not np.allclose(theirs.layer_instance.kernel[...], kernel, atol=1e-2)


@pytest.mark.parametrize(
    ("call", "steps"),
    [
        ({}, True),
        ({"update_stats": False}, False),
        ({"use_running_average": True}, False),
        ({"update_stats": True, "use_running_average": True}, True),
    ],
    ids=str,
)
def test_spectral_state_moves_by_steps_of_the_function(call: Fields, steps: bool) -> None:
    """A call that updates takes one step of `jaxnorm.spectral_norm`; other calls take none."""
    wrapper = wrapper_of("SpectralNorm", n_steps=2)
    before, kernel = read_state(wrapper), wrapper.layer_instance.kernel[...]
    np.testing.assert_allclose(jnp.linalg.norm(before.u), 1, rtol=1e-6)
    assert before.sigma == 1
    called(wrapper, partial(say, **call), X)
    expected = compiled(partial(jn.spectral_norm, n_steps=2), kernel, before)[1]
    assert_close(read_state(wrapper), expected if steps else before, 1e-6 if steps else 0.0)
    assert moved({"u": before.u}, {"u": read_state(wrapper).u}) == ({"u"} if steps else set())


def say(module: Any, x: jax.Array, **call: Any) -> Any:
    """Calls the module with keyword arguments."""
    return module(x, **call)


def read_state(wrapper: Any) -> jn.SpectralState:
    """The state of the kernel."""
    return jn.SpectralState(*(wrapper.batch_stats["kernel", n][...] for n in ("u", "sigma")))


@pytest.mark.parametrize("at", ["constructor", "eval", "view", "set_view", "position"])
def test_spectral_modes(at: str) -> None:
    """The constructor, ``eval``, `nnx.view`, ``set_view`` and the call can turn updates off."""
    wrapper = wrapper_of("SpectralNorm", update_stats=at != "constructor")
    model, before = wrapper, read_state(wrapper)
    if at == "eval":
        wrapper.eval()
    elif at == "view":
        model = nnx.view(wrapper, use_running_average=True)
    elif at == "set_view":
        wrapper.set_view(use_running_average=True)
    called(model, partial(say, update_stats=False) if at == "position" else forward, X)
    assert_equal(read_state(wrapper), before)
    called(wrapper, partial(say, update_stats=True), X)
    assert not np.array_equal(read_state(wrapper).u, before.u)


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_the_layer_keeps_is_kept(name: str) -> None:
    """Attributes and variables that a layer creates in its call are kept, as without a wrapper."""

    class Counting(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.kernel = nnx.Param(jnp.ones((6, 3)))
            self.calls = 0

        def __call__(self, x: jax.Array) -> jax.Array:
            self.calls += 1
            if not hasattr(self, "seen"):
                self.seen = nnx.Cache(jnp.zeros((), int))
            self.seen[...] += 1
            return x @ self.kernel[...]

    wrapper = wrapper_of(name, Counting)
    for _ in range(2):
        wrapper(X)
    assert wrapper.layer_instance.calls == 2
    assert wrapper.layer_instance.seen[...] == 2


@pytest.mark.parametrize("name", WEIGHTS)
def test_intermediates_are_captured(name: str) -> None:
    """Values that a wrapped layer sows are found once by `nnx.capture`, where they are without a wrapper."""

    class Sowing(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linear = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            y = self.linear(x)
            self.sow(nnx.Intermediate, "mean", y.mean())
            return y

    y, found = nnx.capture(wrapper_of(name, Sowing), nnx.Intermediate)(X)
    (mean,) = found["layer_instance"]["mean"].get_value()
    np.testing.assert_allclose(mean, y.mean(), rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_call_reaches_the_layer(name: str) -> None:
    """Arguments reach the layer unchanged, and so does the mode if it is given and the layer accepts it."""
    heard: list[Any] = []

    class Listener(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.kernel = nnx.Param(jnp.ones((6, 3)))

        def __call__(
            self, x: jax.Array, y: Any = 0, *, z: Any = 0, use_running_average: Any = "nothing"
        ) -> Any:
            heard.append((y, z, use_running_average))
            return x @ self.kernel[...]

    wrapper = wrapper_of(name, Listener)
    extra: tuple[Any, ...] = (True, 1) if name == "SpectralNorm" else (1,)
    wrapper(X, *extra, z=2, use_running_average=True)
    wrapper(X, *extra, z=2, use_running_average=False)
    wrapper(X)
    assert heard == [(1, 2, True), (1, 2, False), (0, 0, "nothing")]
    wrapper_of(name)(X, use_running_average=True)  # a linear layer does not get it


# --- our own options -----------------------------------------------------------------------------


def test_exact_spectral_norm() -> None:
    """``n_steps=None`` gives a largest singular value of 1 at once; ``n_steps=0`` is the bare layer."""
    exact = wrapper_of("SpectralNorm", without, n_steps=None)
    w = called(exact, forward, jnp.eye(6))
    np.testing.assert_allclose(jnp.linalg.norm(w, 2), 1, rtol=1e-5)
    none = wrapper_of("SpectralNorm", without, n_steps=0)
    assert none.batch_stats == {}
    assert_equal(called(none, forward, X), called(without(nnx.Rngs(0)), forward, X))


def test_spectral_norm_of_matrices_only() -> None:
    """With ``error_on_non_matrix``, wrapping a convolution raises."""
    with pytest.raises(ValueError, match="error_on_non_matrix is True"):
        wrapper_of("SpectralNorm", conv, error_on_non_matrix=True)


@pytest.mark.parametrize("axes", [-1, None, (0, -1)], ids=str)
@pytest.mark.parametrize("layer", [linear, conv, Bar])
def test_weight_norm_that_starts_as_the_layer_was(layer: Make, axes: Any) -> None:
    """``scale_init=None`` starts from the lengths of the weights, as in PyTorch, so nothing changes."""
    rngs = nnx.Rngs(0)
    wrapper = jnx.WeightNorm(layer(rngs), scale_init=None, feature_axes=axes, rngs=rngs)
    expected = called(layer(nnx.Rngs(0)), forward, X)
    np.testing.assert_allclose(called(wrapper, forward, X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scales_have_the_dtype_and_draw_the_keys_asked_for(dtype: Any) -> None:
    """Scales have ``param_dtype``, and ``scale_init`` gets a separate key for each (Flax's passes no key)."""
    uniform = nnx.initializers.uniform(1.0)
    rngs = nnx.Rngs(0)
    wrapper = jnx.WeightNorm(Bar(rngs), scale_init=uniform, param_dtype=dtype, rngs=rngs)
    scales = [np.asarray(v[...], np.float32) for v in (wrapper.scales or {}).values()]
    assert len(scales) == 3 and len({tuple(s) for s in scales}) == 3
    assert {v[...].dtype for v in (wrapper.scales or {}).values()} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("use_gain", [False, True])
def test_weight_standardization(use_gain: bool) -> None:
    """Each output's weights have mean 0 and variance 1, times a gain that is a parameter."""
    rngs = nnx.Rngs(0) if use_gain else None
    layer = conv(nnx.Rngs(0))
    wrapper = jnx.WeightStandardization(layer, use_gain=use_gain, gain_init=ramp, rngs=rngs)
    gain = wrapper.gains["kernel",][...] if wrapper.gains else None
    assert (gain is not None) == use_gain
    kernel = compiled(jn.weight_standardization, layer.kernel[...], gain)
    np.testing.assert_allclose(kernel.std((0, 1)), 1 if gain is None else gain, rtol=1e-5)
    y = called(wrapper, forward, X)
    layer.kernel[...] = kernel
    assert_close(y, called(layer, forward, X), 1e-6)


def test_wrappers_in_wrappers() -> None:
    """Each wrapper keeps its own state, and weight norm, the inner one, determines the lengths."""
    rngs = nnx.Rngs(0)
    inner = jnx.WeightNorm(linear(rngs), scale_init=ramp, rngs=rngs)
    wrapper = jnx.SpectralNorm(inner, rngs=rngs)
    before = flat(wrapper)
    y = called(wrapper, forward, X)
    assert moved(before, flat(wrapper)) == {"kernel/u", "kernel/sigma"}
    assert_close(y, called(inner, forward, X), 1e-5)


def test_tied_parameters() -> None:
    """A weight that two layers share is normalized once and has one scale."""

    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.second = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.second.kernel = self.first.kernel

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(self.first(x))

    wrapper = wrapper_of("WeightNorm", Tied)
    ((path, scale),) = wrapper.scales.items()
    assert path == ("first", "kernel")
    w = jn.weight_norm(wrapper.layer_instance.first.kernel[...], scale[...])
    assert_close(called(wrapper, forward, X), X @ w @ w, 1e-5)
    assert wrapper.layer_instance.second.kernel is wrapper.layer_instance.first.kernel
