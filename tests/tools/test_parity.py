"""`assert_parity` accepts functions that agree on many devices, and names the transform that does not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx, tools

TRANSFORMS = ["jit over a mesh", "shard_map", "shard_map, check_vma=False", "pmap", "vmap"]
X = (
    np.random.default_rng(0)
    .normal(np.arange(16)[:, None, None], size=(16, 5, 3))
    .astype(np.float32)
)
MASK = np.arange(16)[:, None, None] < 9  # the last three devices are fully masked


def batch(mask: np.ndarray = MASK) -> dict[str, Any]:
    """A batch with NaN in masked elements."""
    return {"x": np.where(mask, X, np.float32(np.nan)), "mask": mask}


def linen_model(norm: Any) -> tuple[Any, Any]:
    """A function of a Linen model with ``norm``, and its variables."""

    def model(axis_name: str | None) -> nn.Module:
        return nn.Sequential([nn.Dense(4), norm(axis_name=axis_name, use_running_average=False)])

    def f(variables: Any, batch: Any, axis_name: str | None) -> Any:
        x, norm = jnp.where(batch["mask"], batch["x"], 0), model(axis_name)
        dense, normalize = norm.layers
        x = dense.apply({"params": variables["params"]["layers_0"]}, x)
        inner = {"params": variables["params"]["layers_1"]}
        inner["batch_stats"] = variables["batch_stats"]["layers_1"]
        y, updated = normalize.apply(inner, x, mask=batch["mask"], mutable=["batch_stats"])
        return jnp.where(batch["mask"], y, 0), updated

    return f, model(None).init(jax.random.key(0), jnp.asarray(X))


def test_functions_pass() -> None:
    """Functions pass, with masks that leave devices empty."""

    def function(stats: Any, batch: Any, axis_name: str | None) -> Any:
        return jn.batch_norm(batch["x"], stats, mask=batch["mask"], axis_name=axis_name)

    rows = tools.assert_parity(function, jn.init_running_stats(3), batch())
    assert [row.transform for row in rows] == TRANSFORMS
    assert all(row.worst < 1e-4 and not row.problem for row in rows)


@pytest.mark.thorough
def test_linen_models_pass() -> None:
    """Linen models pass, with masks that leave devices empty."""
    f, variables = linen_model(jnl.BatchNorm)
    tools.assert_parity(f, variables, batch())


def test_nnx_models_pass() -> None:
    """NNX models pass, with masks that leave devices empty."""
    layer = jnx.BatchNorm(3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def of_nnx(state: Any, batch: Any, axis_name: str | None) -> Any:
        layer = nnx.merge(graph, state)
        layer.axis_name = axis_name
        y = layer(batch["x"], mask=batch["mask"])
        return y, nnx.state(layer, nnx.BatchStat)

    tools.assert_parity(of_nnx, state, batch())


@pytest.mark.thorough
def test_virtual_batches_pass() -> None:
    """Virtual batches of any size pass, regardless of device placement."""

    def of(size: int) -> Any:
        def f(stats: Any, batch: Any, axis_name: str | None) -> Any:
            return jn.batch_norm(
                batch["x"], stats, mask=batch["mask"], axis_name=axis_name, virtual_batch_size=size
            )

        return f

    for size in (1, 8):
        tools.assert_parity(of(size), jn.init_running_stats(3), batch())


def test_rounding_is_let_pass() -> None:
    """Outputs around zero pass, and so do gradients that are zero up to rounding."""

    def f(params: Any, batch: Any, axis_name: str | None) -> Any:
        x = batch @ params["kernel"] + params["bias"][None]
        return jn.batch_norm(x, params["stats"], axis_name=axis_name)

    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 4)).astype(np.float32),
        "bias": np.zeros(4, np.float32),
        "stats": jn.init_running_stats(4),
    }
    batch = rng.integers(-1, 2, (64, 3)).astype(np.float32)  # many rows are equal, and many zero
    tools.assert_parity(f, params, batch, tolerance=5e-5)


def test_local_statistics_do_not() -> None:
    """With statistics of each device alone, all maps are reported, and jit over a mesh is right."""

    def f(stats: Any, batch: Any, axis_name: str | None) -> Any:
        return jn.batch_norm(batch["x"], stats, mask=batch["mask"])

    with pytest.raises(
        AssertionError, match="results on 8 devices differ from those on one"
    ) as raised:
        tools.assert_parity(f, jn.init_running_stats(3), batch())
    for line in str(raised.value).splitlines()[2:]:
        name, *numbers = line.rsplit(maxsplit=3)
        assert (max(map(float, numbers)) < 1e-4) == (name.strip() == "jit over a mesh")


@pytest.mark.thorough
def test_flax_does_not() -> None:
    """Flax averages over devices without weights, so every map is off for uneven masks."""
    f, variables = linen_model(nn.BatchNorm)
    uneven = (np.arange(16) < 2)[:, None, None] | (np.arange(5) < 2)[None, :, None]
    with jax.numpy_rank_promotion("allow"), pytest.raises(AssertionError, match="pmap") as raised:
        tools.assert_parity(f, variables, batch(np.broadcast_to(uneven, (16, 5, 1))))
    assert "jit over a mesh" in str(raised.value)


def test_what_is_raised_is_in_the_table() -> None:
    """A transform under which the function fails is a row with the reason."""

    def f(stats: Any, batch: Any, axis_name: str | None) -> Any:
        return jn.batch_norm(batch["x"], stats, axis_name=axis_name and "bathc")

    with pytest.raises(
        AssertionError, match=r"vmap +ValueError: axis_name must name axes"
    ) as raised:
        tools.assert_parity(f, jn.init_running_stats(3), {"x": X})
    assert "bound here are: 'batch'" in str(raised.value)


@pytest.mark.parametrize(
    ("leaves", "devices"),
    [
        ({"x": X[:9]}, 8),
        ({"x": X, "y": X[:8]}, 8),
        ({"x": X, "y": np.float32(1)}, 8),
        ({"x": X}, 1),
    ],
)
def test_a_batch_that_cannot_be_split(leaves: Any, devices: int) -> None:
    """Leaves of different lengths, without elements, or not a multiple of the devices are refused."""
    with pytest.raises(ValueError, match="batch must split equally over two or more devices"):
        tools.assert_parity(lambda p, b, a: (b, p), {}, leaves, devices=jax.devices()[:devices])
