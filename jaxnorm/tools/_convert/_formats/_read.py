"""Recognizes the library that a source or target belongs to."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from . import _source
from ._equinox import is_equinox, read_equinox
from ._files import read_file
from ._flax import read_linen, read_nnx, write_linen, write_nnx
from ._haiku import read_haiku
from ._source import Source
from ._torch import read_torch, write_torch


def read_source(source: Any) -> Source:
    """Reads the layers of ``source``, in any supported form.

    Raises:
        ValueError: If the form is not supported.
    """
    match source:
        case str() | os.PathLike():
            return read_torch(read_file(Path(source)))
        case (Mapping() as params, Mapping() as state):
            return read_haiku(params, state)
        case (module, state) if is_equinox(module):
            return read_equinox(module, state)
        case _ if is_equinox(source):
            return read_equinox(source)
        case nnx.Module() | Mapping():
            return read_like(source)
    raise ValueError(
        f"source must be a state_dict, a .safetensors or .npz file, Linen variables, an NNX model, Haiku's "
        f"(params, state), or an Equinox module or (module, state); got {type(source).__name__}. For a "
        f"PyTorch model, pass model.state_dict()."
    )


def read_like(like: Any) -> Source:
    """Reads the layers of a target: a ``state_dict``, Linen variables, or an NNX model.

    Raises:
        ValueError: If ``like`` is none of these.
    """
    match like:
        case nnx.Module():
            return read_nnx(like)
        case Mapping() if _is_linen(like):
            return read_linen(like)
        case Mapping():
            return read_torch(like)
    raise ValueError(
        f"like must be Linen variables (or their shapes, from jax.eval_shape), an NNX model, or a PyTorch "
        f"state_dict; got {type(like).__name__}. Pass an example of the result; it is not modified."
    )


def write(like: Any, values: Mapping[_source.Path, Mapping[str, np.ndarray]]) -> Any:
    """Makes a new object of the kind of ``like`` with these values."""
    if isinstance(like, nnx.Module):
        return write_nnx(like, values)
    if _is_linen(like):
        return write_linen(like, values)
    return write_torch(read_torch(like), values)


def _is_linen(variables: Mapping[str, Any]) -> bool:
    collections = (variables.get(name) for name in ("params", "batch_stats"))
    return any(isinstance(collection, Mapping) for collection in collections)
