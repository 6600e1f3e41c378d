"""The types of models and trees in the signatures of the tools."""

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
import jax
from flax import nnx

AnyModel: TypeAlias = nn.Module | nnx.Module
ModelT = TypeVar("ModelT", bound=AnyModel)
NnxModelT = TypeVar("NnxModelT", bound=nnx.Module)
Variables: TypeAlias = Mapping[str, Any]
"""Linen's variables: trees of arrays by collection."""
Rngs: TypeAlias = jax.Array | Mapping[str, jax.Array]
"""A key, or Linen's keys by stream."""
Tree: TypeAlias = Any
"""A pytree of arrays."""
Batch: TypeAlias = Any
"""A pytree of arrays with examples along their first axes, or whatever else ``run`` accepts."""
Layer: TypeAlias = Any
"""A Linen or NNX module with fields that the tools look up by name."""
TreeT = TypeVar("TreeT")
