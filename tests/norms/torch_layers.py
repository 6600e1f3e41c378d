"""Runs one layer through each API here and in PyTorch, with the same names and values."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from tests.norms.torch_rows import Fields, Row

NAMES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def through_functions(
    ours: str, fields: Fields, params: Any, stats: Any, x: Any, train: bool
) -> Any:
    """Calls the function that corresponds to the module with this name and these fields."""
    of_modules = ("num_features", "use_scale", "use_bias", "axis", "track_running_stats")
    options = {name: value for name, value in fields.items() if name not in of_modules}
    affine = [params.get("scale"), params.get("bias")]
    moving = {name: options.pop(name) for name in ("momentum", "unbiased") if name in options}
    match ours:
        case "BatchNorm" | "InstanceNorm" if stats:
            options["feature_axes"] = 1
            state = jn.RunningStats(**stats)
            if not train:
                return jn.batch_norm_inference(x, state, *affine, **options), stats
            norm = {"BatchNorm": jn.batch_norm, "InstanceNorm": jn.tracked_instance_norm}[ours]
            y, state = norm(x, state, *affine, **moving, **options)
            return y, {name: getattr(state, name) for name in stats}
        case "BatchNorm":  # without running statistics
            axes = tuple(i for i in range(x.ndim) if i != 1)
            y = jn.layer_norm(x, *affine, feature_axes=1, reduction_axes=axes, **options)
        case "InstanceNorm":
            y = jn.instance_norm(x, *affine, **options)
        case "LayerNorm":
            y = jn.layer_norm(x, *affine, **options)
        case "RMSNorm":
            y = jn.rms_norm(x, params.get("scale"), **options)
        case "GroupNorm":
            y = jn.group_norm(x, *affine, **options)
        case _:
            y = jn.local_response_norm(x, **options)
    return y, stats


def through_linen(ours: str, fields: Fields, params: Any, stats: Any, x: Any, train: bool) -> Any:
    """Runs the Linen module."""
    fields = {name: value for name, value in fields.items() if name != "num_features"}
    y, updated = getattr(jnl, ours)(**fields).apply(
        {"params": params, "batch_stats": stats},
        x,
        use_running_average=not train,
        mutable=["batch_stats"] if train else [],
    )
    return y, updated.get("batch_stats", stats)


def through_nnx(ours: str, fields: Fields, params: Any, stats: Any, x: Any, train: bool) -> Any:
    """Runs the NNX module."""
    layer = getattr(jnx, ours)(**fields, rngs=nnx.Rngs(0))
    for name, value in params.items():
        setattr(layer, name, nnx.Param(value))
    for name, value in stats.items():
        setattr(layer, name, nnx.BatchStat(value))
    if stats and not train:
        layer.eval()
    y = layer(x)
    return y, {name: getattr(layer, name)[...] for name in stats}


WAYS: dict[str, Callable[..., Any]] = {
    "functions": through_functions,
    "linen": through_linen,
    "nnx": through_nnx,
}


def state_of(layer: Any) -> tuple[Fields, Fields]:
    """Parameters and running statistics of a PyTorch layer, with our names."""

    def found(*names: str) -> Fields:
        values = {name: getattr(layer, NAMES[name], None) for name in names}
        return {n: v.detach().numpy().copy() for n, v in values.items() if v is not None}

    params, stats = found("scale", "bias"), found("mean", "var")
    if stats and layer.momentum is None and "Batch" in type(layer).__name__:
        stats["count"] = np.full(3, int(layer.num_batches_tracked), np.int32)
    return params, stats


def make(torch: Any, row: Row, rng: np.random.Generator) -> Any:
    """The PyTorch layer, in double precision, with random parameters."""
    layer = attrgetter(row.theirs)(torch)(**row.options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(1.0, 0.5, parameter.shape)))
    return layer


def trained(
    torch: Any, layer: Any, x: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, Fields, np.ndarray]:
    """Runs a training step in PyTorch and returns y and the gradients of the parameters and x."""
    layer.train()
    layer.zero_grad()
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    y = layer(leaf)
    y.backward(torch.from_numpy(dy))
    grads = {n: getattr(layer, NAMES[n]).grad.numpy().copy() for n in state_of(layer)[0]}
    return y.detach().numpy(), grads, leaf.grad.numpy()


def evaluated(torch: Any, layer: Any, x: np.ndarray) -> np.ndarray:
    """Runs PyTorch in evaluation."""
    layer.eval()
    return layer(torch.from_numpy(x)).detach().numpy()


def assert_close(ours: Any, theirs: Any, what: str) -> None:
    """Compares trees with the same names and shapes in double precision."""

    def close(a: Any, b: Any) -> None:
        assert a.shape == b.shape and str(a.dtype) in ("float64", "int32"), what
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=what)

    jax.tree.map(close, ours, theirs)
