"""Reads and writes a PyTorch ``state_dict``: a flat mapping in which dots join the names of layers."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._source import Entry, Path, Source

# Keys that replace a normalized weight: with parametrizations, and with the older wrappers, where "weight_v"
# is a direction of the inputs in spectral norm and the weight itself in weight norm.
_PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations\.(\w+)\.(original[01]?|0\._[uv])")
_SLOT = {"original": "", "original0": "/g", "original1": "", "0._u": "/u", "0._v": "/v"}
_OLD = re.compile(r"(.*)_(g|v|u|orig)")


def read_torch(state_dict: Mapping[str, Any]) -> Source:
    """Reads the layers of a ``state_dict``, in its order.

    Raises:
        ValueError: If a value is not an array.
    """
    layers: dict[Path, dict[str, Entry]] = {}
    for key, leaf in state_dict.items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise ValueError(
                f"a state_dict must map names to arrays; got {type(leaf).__name__} for {key!r}. Pass the "
                f'part of a checkpoint that is one, as in checkpoint["state_dict"]; Linen variables need '
                f'their collections, as in {{"params": params}}.'
            )
        path, slot = _place_of(key, state_dict)
        layers.setdefault(path, {})[slot] = Entry(key, "", leaf)
    return Source(layers, is_torch=True)


def write_torch(like: Source, values: Mapping[Path, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Makes a ``state_dict`` of NumPy arrays from these values; bfloat16 becomes float32 (NumPy has none)."""
    state_dict: dict[str, Any] = {}
    for path, layer in like.layers.items():
        for slot, entry in layer.items():
            dtype = entry.dtype if entry.dtype.kind in "biufc" else jnp.dtype("float32")
            rounded = values[path][slot].astype(entry.dtype)
            state_dict[entry.name] = np.array(rounded, dtype, order="C")
    return state_dict


def _place_of(key: str, state_dict: Mapping[str, Any]) -> tuple[Path, str]:
    """The layer that a key belongs to, and the slot in it."""
    parametrized = _PARAMETRIZED.fullmatch(key)
    if parametrized:
        layer, name, part = parametrized.groups(default="")
        return tuple(layer.split(".")) if layer else (), name + _SLOT[part]
    *path, name = key.split(".")
    old = _OLD.fullmatch(name)
    if old:
        base, part = old.groups()
        siblings = {p for p in "gvu" if ".".join([*path, f"{base}_{p}"]) in state_dict}
        spectral = ".".join([*path, f"{base}_orig"]) in state_dict
        if spectral and part in ("u", "v", "orig"):
            return tuple(path), base if part == "orig" else f"{base}/{part}"
        if siblings == {"g", "v"}:
            return tuple(path), f"{base}/g" if part == "g" else base
    return tuple(path), name
