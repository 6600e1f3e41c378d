"""Our own options of the Linen wrappers of weights, and training with each wrapper."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import jaxnorm as jn
from jaxnorm import linen as jnl
from tests.linen.models import Bar, Bare
from tests.modules import (
    KEY,
    WEIGHTS,
    Fields,
    assert_close,
    assert_equal,
    compiled,
    normal,
    ramp,
)

X = normal((5, 6))
TARGET = normal((5, 3), seed=1)
STATE: Any = ["batch_stats"]


# --- our own options -----------------------------------------------------------------------------


def test_exact_spectral_norm() -> None:
    """``n_steps=None`` gives a largest singular value of 1 at once; ``n_steps=0`` is the bare layer."""
    exact = jnl.SpectralNorm(nn.Dense(3, use_bias=False), n_steps=None)
    variables = exact.init(KEY, X, update_stats=False)
    w: Any = exact.apply(variables, jnp.eye(6), update_stats=False)
    np.testing.assert_allclose(jnp.linalg.norm(w, 2), 1, rtol=1e-5)
    none = jnl.SpectralNorm(nn.Dense(3, use_bias=False), n_steps=0)
    y, bare = none.init_with_output(KEY, X, update_stats=True)
    assert set(bare) == {"params"}
    assert_equal(
        y, nn.Dense(3, use_bias=False).apply({"params": bare["params"]["layer_instance"]}, X)
    )


@pytest.mark.sampled
@pytest.mark.parametrize(
    "layer", [lambda: nn.Dense(3), lambda: nn.Conv(3, (3,)), Bar], ids=["dense", "conv", "layers"]
)
@pytest.mark.parametrize("axes", [-1, None, (0, -1)], ids=str)
def test_weight_norm_that_starts_as_the_layer_was(axes: Any, layer: Any) -> None:
    """``scale_init=None`` starts from the lengths of the weights, as in PyTorch, so nothing changes."""
    wrapper = jnl.WeightNorm(layer(), scale_init=None, feature_axes=axes)
    (y, variables), (expected, alone) = compiled(
        lambda key: [w.init_with_output(key, X) for w in (wrapper, Bare(layer()))], KEY
    )
    assert_equal(variables["params"]["layer_instance"], alone["params"]["layer_instance"])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    flat: Any = traverse_util.flatten_dict(variables["params"], sep="/")
    for path in [n for n in flat if n.endswith("kernel")]:
        kept = () if axes is None else tuple(a % flat[path].ndim for a in np.atleast_1d(axes))
        reduced = tuple(i for i in range(flat[path].ndim) if i not in kept)
        lengths = np.sqrt(np.square(flat[path]).sum(reduced))
        np.testing.assert_allclose(flat[f"{path}/scale"], lengths, rtol=1e-6)


@pytest.mark.parametrize("use_gain", [False, True])
def test_weight_standardization(use_gain: bool) -> None:
    """Each output's weights have mean 0 and variance 1, times a gain that is a parameter."""
    wrapper = jnl.WeightStandardization(nn.Conv(4, (3,)), use_gain=use_gain, gain_init=ramp)

    def of(key: jax.Array) -> Any:
        y, variables = wrapper.init_with_output(key, X)
        params: Any = dict(variables["params"])
        layer, gain = params.pop("layer_instance"), params.pop("layer_instance/kernel/gain", None)
        assert not params
        kernel = jn.weight_standardization(layer["kernel"], gain)
        changed: Any = nn.Conv(4, (3,)).apply({"params": {**layer, "kernel": kernel}}, X)
        return y, changed, kernel, gain

    y, expected, kernel, gain = compiled(of, KEY)
    assert_close(y, expected, 1e-6)
    assert (gain is not None) == use_gain
    np.testing.assert_allclose(kernel.mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(kernel.std((0, 1)), 1 if gain is None else gain, rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_training_with_optax(name: str) -> None:
    """The loss falls, and only the optimizer changes kernel, bias and scales."""
    fields: Fields = {"use_gain": True} if name == "WeightStandardization" else {}
    wrapper = getattr(jnl, name)(nn.Dense(3), **fields)
    variables = wrapper.init(KEY, X, use_running_average=False)
    first, optimizer = variables["params"], optax.sgd(0.05)

    @jax.jit
    def update(variables: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            y, updated = wrapper.apply(given, X, use_running_average=False, mutable=True)
            return ((y - TARGET) ** 2).mean(), updated

        (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        moves, state = optimizer.update(grads, state)
        params = optax.apply_updates(variables["params"], moves)
        still = jax.tree.map(jnp.array_equal, updated.pop("params"), variables["params"])
        return {**updated, "params": params}, state, value, still

    values, state = [], optimizer.init(first)
    for _ in range(20):
        variables, state, value, still = update(variables, state)
        values.append(float(value))
        assert all(jax.tree.leaves(still))
    assert values[-1] < 0.95 * values[0]
    for before, after in zip(*map(jax.tree.leaves, (first, variables["params"])), strict=True):
        assert not np.array_equal(before, after)
