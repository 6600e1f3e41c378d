"""Virtual batches in modules, over meshes and in compiled programs (for splits: test_any_devices.py)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(np.arange(32)[:, None, None], size=(32, 6, 3)), jnp.float32)
MASK = jnp.asarray(RNG.random((32, 6, 1)) < 0.7)
STATS = jn.init_running_stats(3)


def by_hand(x: Any, mask: Any, size: int) -> tuple[Any, jn.RunningStats]:
    """Normalizes each virtual batch separately; running statistics cover the whole batch."""
    parts = (slice(i, i + size) for i in range(0, len(x), size))
    y = [jn.batch_norm(x[part], STATS, mask=mask[part])[0] for part in parts]
    return jnp.concatenate(y), jn.batch_norm(x, STATS, mask=mask, momentum=0.0, unbiased=True)[1]


@pytest.mark.sampled
@pytest.mark.parametrize("size", [1, 4, 8, 32])
@pytest.mark.parametrize(
    "axis_type",
    [
        pytest.param(AxisType.Auto, id="auto"),
        pytest.param(AxisType.Explicit, id="explicit", marks=pytest.mark.jax_0_10),
    ],
)
def test_over_a_mesh(axis_type: AxisType, size: int) -> None:
    """Results match under jit over a mesh with four examples per device; no activation is communicated."""
    mesh = jax.make_mesh((8,), ("d",), (axis_type,))
    x, mask = jax.device_put((X, MASK), NamedSharding(mesh, P("d")))

    @jax.jit
    def f(x: Any, mask: Any) -> Any:
        return jn.batch_norm(
            x, STATS, mask=mask, momentum=0.0, unbiased=True, virtual_batch_size=size
        )

    with jax.set_mesh(mesh):
        (y, stats), compiled = f(x, mask), f.lower(x, mask).compile().as_text() or ""
    want, want_stats = by_hand(X, MASK, size)
    np.testing.assert_allclose(y, want, atol=2e-5)
    for got, expected in zip(stats[:2], want_stats[:2], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    moved = re.findall(r"f32\[([\d,]+)\]\S* (?:all-gather|all-to-all|collective-permute)", compiled)
    # If a virtual batch spans devices, at most one mean per example and channel is communicated.
    assert all(np.prod([int(n) for n in dims.split(",")]) <= len(X) * 3 for dims in moved)


def test_modules_hand_it_on() -> None:
    """Linen and NNX pass it on, with or without running statistics; Linen's init accepts any batch size."""
    want, stats = by_hand(X, MASK, 8)
    for tracked in (True, False):
        options: Any = {"virtual_batch_size": 8, "track_running_stats": tracked, "momentum": 0.0}
        linen = jnl.BatchNorm(**options, unbiased=True)
        variables = linen.init(jax.random.key(0), X[:1], use_running_average=False)
        outcome: Any = linen.apply(
            variables, X, use_running_average=False, mask=MASK, mutable=["batch_stats"]
        )
        y, updated = outcome
        layer: Any = jnx.BatchNorm(3, **options, unbiased=True, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(y, want, atol=2e-5)
        np.testing.assert_array_equal(layer(X, mask=MASK), y)
        if tracked:
            np.testing.assert_allclose(updated["batch_stats"]["var"], stats.var, rtol=1e-5)
            np.testing.assert_array_equal(layer.var[...], updated["batch_stats"]["var"])


def test_second_derivatives() -> None:
    """The gradient of a gradient matches the separate parts."""
    w = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)

    def curvature(normalized: Any) -> Any:
        slope = jax.grad(lambda x: (w * normalized(x) ** 2).sum())
        return jax.jit(lambda x: jax.jvp(slope, (x,), (w,))[1])(X)

    ours = curvature(lambda x: jn.batch_norm(x, STATS, mask=MASK, virtual_batch_size=8)[0])
    want = curvature(lambda x: by_hand(x, MASK, 8)[0])
    np.testing.assert_allclose(ours, want, atol=1e-4 * float(jnp.abs(want).max()))
