"""The types of models and trees in the signatures of the tools."""

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
from flax import nnx

AnyModel: TypeAlias = nn.Module | nnx.Module
ModelT = TypeVar("ModelT", bound=AnyModel)
NnxModelT = TypeVar("NnxModelT", bound=nnx.Module)
Variables: TypeAlias = Mapping[str, Any]
"""Linen's variables: trees of arrays by collection."""
TreeT = TypeVar("TreeT")
