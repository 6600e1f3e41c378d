"""The arithmetic of folding: a batch norm in evaluation is y = factor · x + offset for each channel."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]


def as_float64(array: Any) -> np.ndarray:
    """In float64 or complex128: rounded once, at the end."""
    array = np.asarray(array)
    return array.astype(np.promote_types(array.dtype, np.float64))


def factor_and_offset(epsilon: float, norm: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset, scale / sqrt(var + ε) and bias - mean · factor, of what a batch norm holds."""
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = as_float64(norm.get("scale", 1.0)) / np.sqrt(as_float64(norm["var"]) + epsilon)
        return factor, as_float64(norm.get("bias", 0.0)) - as_float64(norm["mean"]) * factor


def into_layer_before(
    layer: Arrays, factor: np.ndarray, offset: np.ndarray, *, transposed: bool
) -> dict[str, np.ndarray]:
    """What a layer holds that returns factor · y + offset where it returned y.

    Factor and offset are of the rank of the features. These are the last axes of its kernel, or the last but
    one if that is ``transposed``.
    """
    if "embedding" in layer:  # each output is a row of it
        return {"embedding": as_float64(layer["embedding"]) * factor + offset}
    along = factor[..., None] if transposed else factor
    return {
        "kernel": as_float64(layer["kernel"]) * along,
        "bias": as_float64(layer.get("bias", 0.0)) * factor + offset,
    }


def into_layer_after(
    layer: Arrays, factor: np.ndarray, offset: np.ndarray, *, groups: int, window: int
) -> dict[str, np.ndarray]:
    """What a layer holds that is given x and returns what it returned for factor · x + offset.

    Of its kernel's axes, the first ``window`` are those of the window; the next is of the inputs of a group.
    """
    kernel = as_float64(layer["kernel"])
    inputs, outputs = kernel.shape[window], kernel.shape[window + 1 :]
    # (places in the window, inputs of a group, groups, outputs of a group)
    parts = kernel.reshape(-1, inputs, groups, math.prod(outputs) // groups)
    factor, offset = (a.reshape(groups, inputs).T[..., None] for a in (factor, offset))
    return {
        "kernel": (parts * factor).reshape(kernel.shape),
        "bias": as_float64(layer.get("bias", 0.0)) + (parts * offset).sum((0, 1)).reshape(outputs),
    }
