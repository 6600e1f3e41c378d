"""Makes a model with new arrays in some layers and without some of its batch norms."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import freeze, unfreeze
from flax.core.frozen_dict import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer

from ...core._activation import activated
from ...core._precision import result_dtype, upcast
from .._model._intercept import LayerCall
from .._model._rebuilt import in_place_of
from .._model._substitute import answering
from .._model._types import Layer, ModelT, Tree
from ._dataflow import COLLECTIONS
from ._eligibility import is_norm_or_layer

Arrays: TypeAlias = Mapping[str, jax.Array]
"""New arrays of a layer."""

Changed: TypeAlias = Mapping[str, Arrays]
"""New arrays of layers by path."""

Dtypes: TypeAlias = tuple[str, ...]
"""Dtypes of a norm's arrays, with which its result is promoted."""


def without_norms(
    model: ModelT, variables: Tree, changed: Changed, norms: Mapping[str, Dtypes]
) -> tuple[ModelT, Tree]:
    """Returns ``model`` and ``variables`` with the ``changed`` arrays and without these ``norms``."""
    if isinstance(model, nn.Module):
        return cast(tuple[ModelT, Tree], _linen(model, variables, changed, norms))
    return _nnx(model, changed, norms), None


def what_is_left(
    norm: Any, dtypes: Dtypes, x: jax.Array, residual: jax.Array | None = None
) -> jax.Array:
    """Applies what remains of a folded norm: the dtype of its result, a residual, an activation."""
    x, activation = jnp.asarray(x), getattr(norm, "activation", None)
    dtype = result_dtype(norm.dtype, x, residual, *map(jnp.dtype, dtypes))
    if activation is not None or residual is not None:
        x = upcast(x, residual)
        residual = None if residual is None else residual.astype(x.dtype)
        x = activated(x, activation, residual)
    return x.astype(dtype)


def _linen(
    module: nn.Module, variables: Tree, changed: Changed, norms: Mapping[str, Dtypes]
) -> tuple[nn.Module, Tree]:
    frozen = isinstance(variables, FrozenDict)
    flat = flatten_dict(unfreeze(variables) if frozen else variables, keep_empty_nodes=True)
    kept = {
        (collection, *names): leaf
        for (collection, *names), leaf in flat.items()
        if collection not in COLLECTIONS or "/".join(names[:-1]) not in norms
    }
    biased = set()
    for path, arrays in changed.items():
        layer = ("params", *filter(None, path.split("/")))
        if "bias" in arrays and (*layer, "bias") not in flat:
            biased.add(path)
        like = flat.get((*layer, "kernel"))
        for name, array in arrays.items():
            kept[*layer, name] = array_like(flat.get((*layer, name)), array, like)
    answer = _Folds(tuple(norms.items()), frozenset(biased))
    smaller = unflatten_dict(kept)
    return answering(module, answer), freeze(smaller) if frozen else smaller


@dataclasses.dataclass(frozen=True)
class _Folds:
    """An `Answer` for a Linen model whose batch norms are folded."""

    norms: tuple[tuple[str, Dtypes], ...]
    biased: frozenset[str]  # layers that had no bias

    def __str__(self) -> str:
        return f"folded: {', '.join(repr(norm) for norm, _ in self.norms)}"

    def watches(self, layer: Layer, path: str) -> bool:
        return is_norm_or_layer(layer)

    def __call__(self, call: LayerCall) -> Any:
        dtypes = dict(self.norms).get(call.path)
        if dtypes is not None:
            return what_is_left(call.layer, dtypes, call.x, call.kwargs.get("residual"))
        if call.path not in self.biased:
            return call.proceed(*call.args, **call.kwargs)
        layer = in_place_of(call.layer, use_bias=True)
        return layer(*call.args, **call.kwargs)


def _nnx(model: nnx.Module, changed: Changed, norms: Mapping[str, Dtypes]) -> nnx.Module:
    def replaced(path: tuple[Any, ...], node: Any) -> Any:
        name = "/".join(map(str, path))
        if name in norms:
            return _Rest(node, norms[name])
        return set_arrays(node, changed.get(name, {}))

    return nnx.recursive_map(replaced, nnx.clone(model))


def set_arrays(layer: Layer, arrays: Arrays) -> Any:
    """Sets arrays of an NNX layer, and returns it."""
    for name, array in arrays.items():
        variable = getattr(layer, name)
        if variable is None:
            layer.use_bias = True
            layer.bias = nnx.Param(array_like(None, array, layer.kernel[...]))
        else:
            variable[...] = array_like(variable[...], array)
    return layer


class _Rest(nnx.Module):
    """What remains of a folded NNX batch norm: the dtype of its result, a residual, an activation."""

    def __init__(self, norm: Any, dtypes: Dtypes) -> None:
        self.dtype, self.activation = norm.dtype, getattr(norm, "activation", None)
        self.dtypes = dtypes

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """Has the signature of a batch norm; the flag and the mask have no effect in evaluation."""
        del use_running_average, mask
        return what_is_left(self, self.dtypes, x, residual)


def array_like(old: Tree, array: Any, kernel: Any = None) -> Any:
    """``array`` as a replacement of ``old``: with its dtype, devices and box of metadata.

    Without ``old``, it has the dtype of ``kernel`` and no particular device.
    """
    (like,) = jax.tree.leaves(kernel if old is None else old)
    new = jnp.asarray(array.astype(like.dtype, copy=False))
    if old is None:
        return new
    if isinstance(like, jax.Array) and not isinstance(like, Tracer) and like.committed:
        new = jax.device_put(new, like.sharding)
    return jax.tree.unflatten(jax.tree.structure(old), [new])
