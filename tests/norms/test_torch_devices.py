"""On eight devices, norms match PyTorch's SyncBatchNorm, which in one process is its batch norm."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jaxnorm as jn
from tests.norms.torch_layers import assert_close, make, state_of, through_linen, trained
from tests.norms.torch_rows import BATCH, Row

torch: Any = pytest.importorskip(
    "torch", minversion="2.13", reason="no PyTorch, or one without all of these arguments"
)


def over_vmap(f: Any, params: Any, stats: Any, x: Any) -> Any:
    """Maps over 8 devices as a vmap axis; statistics are shared."""
    y, stats = jax.vmap(f, in_axes=(None, None, 0), out_axes=(0, None), axis_name="devices")(
        params, stats, x.reshape(8, -1, *x.shape[1:])
    )
    return y.reshape(x.shape), stats


def over_shard_map(f: Any, params: Any, stats: Any, x: Any) -> Any:
    """Maps over 8 devices of a mesh."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(
        f, mesh=mesh, in_specs=(P(), P(), P("devices")), out_specs=(P("devices"), P())
    )
    return split(params, stats, x)


@pytest.mark.parametrize("devices", [over_vmap, over_shard_map])
@pytest.mark.parametrize("row", [r for r in BATCH.rows if "Sync" in r.theirs], ids=lambda r: r.name)
def test_synced_batch_norm(row: Row, devices: Callable[..., Any]) -> None:
    """With ``axis_name``, 8 devices match PyTorch on the whole batch, gradients included."""
    rng = np.random.default_rng(0)
    layer = make(torch, row, rng)
    params, stats = state_of(layer)
    fields = {**BATCH.fields(row.arguments(torch)), "axis_name": "devices"}

    @jax.jit
    def step(params: Any, stats: Any, x: Any, dy: Any) -> Any:
        def f(params: Any, x: Any) -> Any:
            one = partial(through_linen, "BatchNorm", fields, train=True)
            return devices(one, params, stats, x)

        y, pull, new = jax.vjp(f, params, x, has_aux=True)
        return (y, *pull(dy)), new

    with jax.enable_x64(True):
        for i in range(2):
            x, dy = rng.normal(i, 2.0, row.shape), rng.normal(size=row.shape)
            theirs = trained(torch, layer, x, dy), state_of(layer)[1]
            ours = step(params, stats, x, dy)
            assert_close(ours, theirs, f"step {i}")
            stats = ours[1]


def over_groups(f: Any, x: Any) -> Any:
    """Two groups of one axis."""
    groups = (0, 1, 2, 3), (4, 5, 6, 7)
    return jax.vmap(partial(f, axis_index_groups=groups), axis_name="devices")(x)


def over_two_axes(f: Any, x: Any) -> Any:
    """Two device axes, only one of them named."""
    y, stats = jax.jit(jax.vmap(jax.vmap(f, axis_name="devices")))(x.reshape(2, 4, *x.shape[1:]))
    return y, jax.tree.map(lambda leaf: leaf.reshape(8, -1), stats)


@pytest.mark.parametrize("groups", [over_groups, over_two_axes])
def test_process_group(groups: Callable[..., Any]) -> None:
    """PyTorch's ``process_group`` corresponds to groups of ``axis_name``, or to a separate axis per group."""
    x = np.random.default_rng(0).normal(size=(16, 3, 5))
    layers = [torch.nn.SyncBatchNorm(3).double() for _ in range(2)]
    halves = torch.from_numpy(x).split(8)
    want = [layer(half).detach() for layer, half in zip(layers, halves, strict=True)]

    def norm(x: Any, **devices: Any) -> Any:
        options = {"feature_axes": 1, "momentum": 0.9, "unbiased": True, "axis_name": "devices"}
        start = jn.init_running_stats(3, jnp.float64)
        return jn.batch_norm(x, start, **options, **devices)

    with jax.enable_x64(True):
        y, stats = groups(norm, jnp.asarray(x.reshape(8, 2, 3, 5)))
        assert_close(y.reshape(x.shape), np.concatenate(want), "y")
        for i, layer in enumerate(layers):
            got = {"mean": stats.mean[4 * i + 1], "var": stats.var[4 * i + 1]}
            assert_close(got, state_of(layer)[1], f"group {i}")
