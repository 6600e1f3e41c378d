"""Reads Haiku's parameters and state: two mappings from modules to arrays by name."""

from collections.abc import Mapping
from typing import Any

from ._source import Entry, Path, Source, by_slot

_ROLES = {"w": "kernel", "b": "bias", "offset": "bias", "embeddings": "embedding"}
_STATISTICS = {"mean_ema": "mean", "var_ema": "var"}


def read_haiku(params: Mapping[str, Any], state: Mapping[str, Any]) -> Source:
    """Reads the layers, whose kernels are laid out like Flax's.

    Running statistics are the averages that Haiku uses in evaluation. The values it computes them from
    (``hidden``, ``counter``) have no counterpart.
    """
    layers: dict[Path, dict[str, Entry]] = {}
    for module, arrays in (*params.items(), *state.items()):
        path = tuple(part for part in module.split("/") if part != "~")
        statistic = _STATISTICS.get(path[-1])
        for name, array in arrays.items():
            layer, role = path, _ROLES.get(str(name), str(name))
            if statistic is not None:
                layer, role = path[:-1], statistic if name == "average" else ""
            if role:
                entry = Entry(f"{module}/{name}", role, _as_in_flax(role, array, path[-1]))
                layers.setdefault(layer, {})[role] = entry
    return Source({path: by_slot(roles) for path, roles in layers.items()}, is_torch=False)


def _as_in_flax(role: str, array: Any, module: str) -> Any:
    """Drops the axes of size 1 that Haiku keeps in vectors; swaps (out, in) of a transposed convolution."""
    if role == "kernel":
        return array.swapaxes(-1, -2) if "transpose" in module else array
    is_vector = array.ndim > 1 and max(array.shape) == array.size
    return array.reshape(-1) if is_vector and role != "embedding" else array
