"""Moments over all devices, in each way that a platform takes them, and what each is lowered to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from jaxnorm.core import _sync
from jaxnorm.core._pool import Moments, moments_from_sums
from tests import oracle

WAYS: dict[str, Callable[..., Any]] = {
    "float64": _sync._in_float64,
    "two all-reduces": _sync._about_their_mean,
    "tpu": _sync._about_zero_if_near,
}
# The mean of each device's values, which have standard deviation 1; NaN stands for an empty device.
MEANS = {
    "near": [0.0, 1.0, -2.0, 5.0],
    "far": [1e4, 1e4 + 1, 1e4 - 2, 1e4],
    "one far": [0.0, 0.0, 1e4, 0.0],
    "opposite": [-1e4, 1e4, -1e4, 1e4],
    "an empty one": [1e4, np.nan, 1e4 + 3, np.nan],
}


@pytest.mark.parametrize("unit", [1.0, 2.0**-12], ids=["counts", "weights"])
@pytest.mark.parametrize("means", MEANS)
@pytest.mark.parametrize("way", WAYS)
def test_moments_of_devices(way: str, means: str, unit: float) -> None:
    """Pooled moments are the moments of all values together, regardless of device placement.

    Counts may be weights, whose unit does not matter.
    """
    rng = np.random.default_rng(0)
    present = [not np.isnan(mean) for mean in MEANS[means]]
    x = np.stack([rng.normal(0 if np.isnan(m) else m, 1, (64, 3)) for m in MEANS[means]])
    x = x.astype(np.float32)
    mask = np.broadcast_to(np.reshape(present, (-1, 1, 1)), x.shape)
    own = [oracle.moments(part, 0, kept) for part, kept in zip(x, mask, strict=True)]
    mean, var, count = (jnp.asarray(np.stack(a), jnp.float32) for a in zip(*own, strict=True))

    def of_device(m: Moments) -> Moments:
        count, shift, total, squares = WAYS[way](m, ("devices",))
        return moments_from_sums(shift, total, squares, count)

    got = jax.jit(jax.vmap(of_device, axis_name="devices"))(Moments(mean, var, unit * count))
    want = oracle.moments(x.reshape(-1, 3), 0, mask.reshape(-1, 3))
    for mean, var, count in zip(*got, strict=True):
        np.testing.assert_array_equal(count, unit * want.count)
        assert np.all(np.abs(mean - want.mean) <= 1e-6 * (np.abs(want.mean) + np.sqrt(want.var)))
        np.testing.assert_allclose(var, want.var, rtol=3e-4)


def test_float64_of_devices_far_from_zero() -> None:
    """At mean/std 1e9, sums about zero are not exact even in float64."""
    with jax.enable_x64(True):
        x = jnp.asarray(1e9 + np.random.default_rng(0).normal(size=(4, 256, 2)))
        pooled = jax.vmap(lambda x: jn.moments(x, 0, axis_name="devices"), axis_name="devices")
        got = jax.jit(pooled)(x)
        np.testing.assert_allclose(got.var[0], np.var(x, (0, 1))[None], rtol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_tpu_has_no_float64(platform: str) -> None:
    """A TPU sums in float32, with a second all-reduce in a branch; a GPU sums once, in float64."""
    mesh = jax.make_mesh((4,), ("devices",), (jax.sharding.AxisType.Auto,))

    def norm(x: jax.Array) -> jax.Array:
        return jn.batch_norm(x, jn.init_running_stats(8), axis_name="devices")[0]

    mapped = jax.shard_map(norm, mesh=mesh, in_specs=P("devices"), out_specs=P("devices"))
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    text = export.export(jax.jit(mapped), platforms=[platform])(x).mlir_module()
    assert ("f64" in text) == (platform == "cuda")
    assert text.count("stablehlo.all_reduce") == (2 if platform == "tpu" else 1)
    assert "all_gather" not in text


@pytest.mark.parametrize("names", ["pooled", ("pooled", "apart")], ids=str)
def test_devices_that_do_not_pool_take_no_branch(names: Any) -> None:
    """Separate groups of a mesh cannot share a branch: they take two all-reduces, whatever their values."""
    mesh = jax.make_mesh((2, 2), ("pooled", "apart"), (jax.sharding.AxisType.Auto,) * 2)

    def pooled(x: jax.Array) -> jax.Array:
        return jn.moments(x, 0, axis_name=names).var

    out = P("apart") if names == "pooled" else P()
    mapped = jax.shard_map(pooled, mesh=mesh, in_specs=P(("pooled", "apart")), out_specs=out)
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    text = export.export(jax.jit(mapped), platforms=["tpu"])(x).mlir_module()
    assert text.count("stablehlo.all_reduce") == 2
    depends_on_values = "(tensor<i1>) -> tensor<i32>" in text  # whether there is a branch
    assert depends_on_values == (names != "pooled")


def test_a_program_for_several_platforms() -> None:
    """A program exported for several platforms uses the sums of the platform it runs on."""
    pooled = jax.vmap(lambda x: jn.moments(x, 0, axis_name="devices").var, axis_name="devices")
    x = jnp.asarray(np.random.default_rng(0).normal(1e4, 1, (4, 64, 2)), jnp.float32)
    program = export.export(jax.jit(pooled), platforms=["cpu", "tpu"])(
        jax.ShapeDtypeStruct(x.shape, x.dtype)
    )
    np.testing.assert_allclose(program.call(x), pooled(x), rtol=1e-6)
