"""Converts an array between the layouts of PyTorch and Flax."""

import math
from typing import NamedTuple

import numpy as np

from ._source import COUNT, Layer

Sizes = tuple[int, ...]


class Layout(NamedTuple):
    """Facts about a layer that its arrays do not show."""

    transposed: bool = False  # a transposed convolution whose kernel Flax does not flip
    channels: Sizes | None = None  # (C, H, W) of an input that PyTorch flattens; Flax: (H, W, C)
    heads: bool = False  # an axis for the heads of attention, which PyTorch flattens


def to_flax(slot: str, found: Layer, wanted: Layer, layout: Layout) -> np.ndarray:
    """Converts PyTorch's array for this slot of Flax's layer; an array that does not fit is unchanged."""
    value, shape = found[slot].numpy(), wanted[slot].shape
    match slot.split("/"):
        case [name] if name == COUNT:
            return np.broadcast_to(value, shape) if value.ndim == 0 else value
        case [_, "g"]:
            return _of_sizes(value, shape)
        case [_, "u"]:
            return value[None]
        case [base, "v"] if found.keys() >= {base, f"{base}/u"}:
            return _largest_gain(base, found, layout)
    if layout.heads and "/" not in slot:
        value = _kernel_from_torch(value, transposed=False)
        return value.reshape(shape) if value.size == math.prod(shape) else value
    if wanted[slot].role == "kernel":
        value = _kernel_from_torch(value, layout.transposed)
        return _with_channels(value, layout.channels, last=True, keep=1)
    return _with_channels(value, _of_inputs(wanted, layout), last=True)


def to_torch(slot: str, found: Layer, wanted: Layer, layout: Layout) -> np.ndarray:
    """Converts Flax's array for this slot of PyTorch's layer."""
    value, shape = found[slot].numpy(), wanted[slot].shape
    match slot.split("/"):
        case [name] if name == COUNT:
            return value.max(initial=0)  # all channels are counted together
        case [_, "g"]:
            return _of_sizes(value, shape)
        case [_, "u"]:
            return value[0] if value.ndim == 2 else value
        case [base, "v"] if found.keys() >= {base, f"{base}/u"}:
            return _direction_of_inputs(base, found, layout)
    if layout.heads and "/" not in slot:
        value = value.reshape(shape[::-1]) if value.size == math.prod(shape) else value
        return _kernel_to_torch(value, transposed=False)
    if found[slot].role == "kernel":
        if value.ndim != len(shape):  # a convolution of single pixels here, and a dense layer there
            ones = (1,) * (len(shape) - value.ndim)
            value = with_leading_ones(value, ones + value.shape[max(value.ndim - len(shape), 0) :])
        value = _with_channels(value, layout.channels, last=False, keep=1)
        return _kernel_to_torch(value, layout.transposed)
    return _with_channels(value, _of_inputs(found, layout), last=False)


def _kernel_from_torch(weight: np.ndarray, transposed: bool) -> np.ndarray:
    """Transposes (out, in, H, W) to (H, W, in, out), of any rank; (in, out, H, W) if ``transposed``."""
    if weight.ndim < 2:
        return weight
    window = tuple(range(2, weight.ndim))
    if transposed:  # PyTorch's is the gradient of a convolution, which flips the window
        return np.flip(weight, window).transpose(*window, 0, 1)
    return weight.transpose(*window, 1, 0)


def _kernel_to_torch(kernel: np.ndarray, transposed: bool) -> np.ndarray:
    if kernel.ndim < 2:
        return kernel
    window = tuple(range(kernel.ndim - 2))
    if transposed:
        return np.flip(kernel, window).transpose(-2, -1, *window)
    return kernel.transpose(-1, -2, *window)


def _of_inputs(layer: Layer, layout: Layout) -> Sizes | None:
    """The sizes of vectors in Flax's layer: norms have a value per input, a bias has one per output."""
    has_outputs = "weight" in layer and layer["weight"].role != "scale"
    return None if has_outputs else layout.channels


def _with_channels(
    value: np.ndarray, sizes: Sizes | None, *, last: bool, keep: int = 0
) -> np.ndarray:
    """Moves channels last, or first, in the flattened axes: all axes but ``keep`` at the end."""
    if sizes is None:
        return value
    flat, kept = value.shape[: value.ndim - keep], value.shape[value.ndim - keep :]
    if math.prod(flat) != math.prod(sizes):
        raise ValueError(
            f"channels_last must give the sizes (C, H, W) of the inputs that PyTorch flattens; got {sizes}, "
            f"with {math.prod(sizes)} elements, for a layer with {math.prod(flat)} inputs. Use the sizes of "
            f"the array that is flattened."
        )
    channels, *positions = sizes
    before = (channels, *positions) if last else (*positions, channels)
    ends = (0, len(positions)) if last else (len(positions), 0)
    moved = np.moveaxis(value.reshape(before + kept), *ends)
    return moved if len(flat) > 1 else moved.reshape(-1, *kept)


def with_leading_ones(value: np.ndarray, shape: Sizes) -> np.ndarray:
    """Reshapes to ``shape`` if only axes of size 1 at the front differ: some libraries keep (1, 1, 1, C)."""
    rank = max(value.ndim, len(shape))
    old, new = ((1,) * (rank - len(sizes)) + tuple(sizes) for sizes in (value.shape, shape))
    return value.reshape(shape) if old == new else value


def _of_sizes(value: np.ndarray, shape: Sizes) -> np.ndarray:
    """Reshapes to ``shape`` if only axes of size 1 differ, which PyTorch keeps."""
    same = [n for n in value.shape if n > 1] == [n for n in shape if n > 1]
    return value.reshape(shape) if same else value


def _largest_gain(base: str, found: Layer, layout: Layout) -> np.ndarray:
    """Computes σ = u W v, which PyTorch does not store."""
    u, v = (found[f"{base}/{name}"].numpy() for name in "uv")
    matrix = _as_matrix(found[base].numpy(), layout)
    return np.asarray(u @ matrix @ v) if matrix.shape == (*u.shape, *v.shape) else v


def _direction_of_inputs(base: str, found: Layer, layout: Layout) -> np.ndarray:
    """Computes the direction v = u W, with length 1, which Flax does not store."""
    u = found[f"{base}/u"].numpy()
    kernel = _with_channels(found[base].numpy(), layout.channels, last=False, keep=1)
    matrix = _as_matrix(_kernel_to_torch(kernel, layout.transposed), layout)
    if u.shape != (1, len(matrix)):
        return u
    v = (u @ matrix)[0]
    return v / max(np.linalg.norm(v), 1e-12)


def _as_matrix(weight: np.ndarray, layout: Layout) -> np.ndarray:
    """PyTorch's weight as a matrix: outputs by everything else."""
    outputs = np.moveaxis(weight, 1 if layout.transposed else 0, 0)
    return outputs.reshape(outputs.shape[0], -1).astype(np.float64)
