"""Reads Equinox modules, whose arrays are named and laid out almost like PyTorch's."""

from typing import Any

import jax
import numpy as np

from ._source import Entry, Path, Source


def is_equinox(thing: Any, name: str = "Module") -> bool:
    """Whether ``thing`` is an instance of this Equinox class. Equinox need not be installed."""
    return any(
        c.__name__ == name and c.__module__.split(".")[0] == "equinox" for c in type(thing).__mro__
    )


def read_equinox(module: Any, state: Any = None) -> Source:
    """Reads the layers of a module, with the running statistics in ``state``.

    Raises:
        ValueError: If there is a batch norm but no state.
    """
    layers: dict[Path, dict[str, Entry]] = {}
    for keys, node in jax.tree_util.tree_flatten_with_path(module, is_leaf=_is_special)[0]:
        path = tuple(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in keys)
        if _is_special(node):
            arrays = _arrays_of(node, state)
        else:
            *path, last = path
            arrays = {last: node}
        for name, array in arrays.items():
            if hasattr(array, "shape") and hasattr(array, "dtype"):  # not an option
                full = ".".join((*path, name))
                layers.setdefault(tuple(path), {})[name] = Entry(full, "", array)
    return Source(layers, is_torch=True)


def _is_special(node: Any) -> bool:
    return any(is_equinox(node, name) for name in ("BatchNorm", "Conv", "ConvTranspose"))


def _arrays_of(layer: Any, state: Any) -> dict[str, Any]:
    """The arrays of ``layer`` with the names and layouts of the same layer in PyTorch."""
    weight, bias = layer.weight, layer.bias
    if is_equinox(layer, "BatchNorm"):
        mean, var = _running_stats(layer, state)
        return {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    if is_equinox(layer, "ConvTranspose"):
        weight = _turned(weight, layer.groups)
    return {"weight": weight, "bias": None if bias is None else bias.reshape(-1)}


def _running_stats(layer: Any, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """The running statistics that Equinox uses in evaluation."""
    if state is None:
        raise ValueError(
            "an Equinox module with batch norm must come with its state; got the module alone. Pass "
            "(module, state), as returned by equinox.nn.make_with_state."
        )
    if layer.mode == "ema":
        mean, var = state.get(layer.ema_state_index)
        return np.asarray(mean), np.asarray(var)
    mean, var = map(np.asarray, state.get(layer.batch_state_index))
    steps = int(state.get(layer.batch_counter))
    weight = np.asarray(1 - layer.momentum**steps if steps else 1.0, mean.dtype)
    return mean / weight, var / weight  # Equinox corrects for the zero start in the same way


def _turned(weight: Any, groups: int) -> np.ndarray:
    """Converts a transposed convolution from (out, in, H, W) to PyTorch's (in, out, H, W), window flipped."""
    out, inputs, *window = np.shape(weight)
    grouped = np.asarray(weight).reshape(groups, out // groups, inputs, *window).swapaxes(1, 2)
    turned = np.flip(grouped, tuple(range(3, grouped.ndim)))
    return turned.reshape(groups * inputs, out // groups, *window)
