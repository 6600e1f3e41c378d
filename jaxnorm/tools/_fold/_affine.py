"""The arithmetic of folding: in evaluation, a batch norm computes y = factor · x + offset per channel."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

Arrays = Mapping[str, Any]


def as_float64(array: Any) -> np.ndarray:
    """The array in float64 or complex128, so that folding rounds only once, at the end."""
    array = np.asarray(array)
    return array.astype(np.promote_types(array.dtype, np.float64))


def factor_and_offset(epsilon: float, norm: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The factor, scale / sqrt(var + ε), and the offset, bias - mean · factor, of a batch norm."""
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = as_float64(norm.get("scale", 1.0)) / np.sqrt(as_float64(norm["var"]) + epsilon)
        return factor, as_float64(norm.get("bias", 0.0)) - as_float64(norm["mean"]) * factor


def into_layer_before(
    layer: Arrays,
    factor: np.ndarray,
    offset: np.ndarray,
    *,
    transposed: bool,
    dtype: DTypeLike | None,
) -> dict[str, np.ndarray]:
    """The arrays of a layer that returns factor · y + offset instead of y.

    ``factor`` and ``offset`` have the rank of the features. The features are the last axes of the kernel, or
    the last but one if the kernel is ``transposed``. The new kernel has ``dtype``, or float64 (complex128)
    if that is None.
    """
    if "embedding" in layer:  # each output is a row of the embedding
        return {"embedding": as_float64(layer["embedding"]) * factor + offset}
    along = factor[..., None] if transposed else factor
    kernel = np.asarray(layer["kernel"])
    wide = np.promote_types(kernel.dtype, np.float64)
    rounded = np.empty(kernel.shape, wide if dtype is None else dtype)
    return {
        # In float64 or complex128, but in pieces: a kernel of that dtype would take most of the memory.
        "kernel": np.multiply(kernel, along, out=rounded, dtype=wide, casting="unsafe"),
        "bias": as_float64(layer.get("bias", 0.0)) * factor + offset,
    }


def into_layer_after(
    layer: Arrays, factor: np.ndarray, offset: np.ndarray, *, groups: int, window: int
) -> dict[str, np.ndarray]:
    """The arrays of a layer whose output for x is the given layer's output for factor · x + offset.

    The first ``window`` axes of the kernel are the window; the next one runs over the inputs of a group.
    """
    kernel = as_float64(layer["kernel"])
    inputs, outputs = kernel.shape[window], kernel.shape[window + 1 :]
    # (positions in the window, inputs per group, groups, outputs per group)
    parts = kernel.reshape(-1, inputs, groups, math.prod(outputs) // groups)
    factor, offset = (a.reshape(groups, inputs).T[..., None] for a in (factor, offset))
    return {
        "kernel": (parts * factor).reshape(kernel.shape),
        "bias": as_float64(layer.get("bias", 0.0)) + (parts * offset).sum((0, 1)).reshape(outputs),
    }
