"""The variables of a Linen module after other norms have replaced its batch norms."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from ..norms._shared._flags import flags_for
from ._model._interface import split_path
from ._model._types import Tree
from ._replacement import VARIABLES, Replacement


def carried_variables(variables: Tree, paths: list[str], norm: Replacement) -> Any:
    """``variables`` with those of ``norm`` in place of those of the batch norms at ``paths``."""
    flat = {
        name: flatten_dict(variables[name], keep_empty_nodes=True) if name in variables else {}
        for name in ("params", "batch_stats")
    }
    for path in map(split_path, paths):
        held = {
            name: arrays.pop((*path, name))
            for arrays in flat.values()
            for name in VARIABLES
            if (*path, name) in arrays
        }
        for collection, arrays in _variables_of(norm, held).items():
            of_others = flat.setdefault(collection, {})
            of_others |= {(*path, name): array for name, array in arrays.items()}
    swapped = {
        name: unflatten_dict(arrays)
        for name, arrays in flat.items()
        if arrays or (name in variables and name != "batch_stats")
    }
    others = {name: tree for name, tree in variables.items() if name != "batch_stats"}
    return {**others, **swapped}


def _variables_of(norm: Replacement, held: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variables of ``norm`` by collection: those ``held`` by a batch norm as far as they fit, else new.

    The batch norm itself is not known, only its variables. Axes before the last one are taken for those of a
    loop around the layer, in which the new variables are stacked too.
    """
    plain = nn.meta.unbox(dict(held))
    *stacked, features = plain["mean"].shape or (1,)
    layer = _layer(norm, plain)
    x = jnp.zeros((1, 1, 1, features), plain["mean"].dtype)
    fresh = jax.eval_shape(partial(_initialized, layer), x)
    names = {name for arrays in fresh.values() for name in arrays}
    kept = {name: norm.cast(name, held[name]) for name in names & {*held} if norm.takes_over(name)}
    if names > {*kept}:
        fresh = _initialized(layer, x)

    def one(name: str, tree: Any) -> Any:
        if name in kept:
            return kept[name]
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (*stacked, *a.shape)), tree)

    return {
        collection: {name: one(name, tree) for name, tree in arrays.items()}
        for collection, arrays in fresh.items()
    }


def _layer(norm: Replacement, held: Mapping[str, Any]) -> nn.Module:
    """A layer with the variables of ``norm`` in place of these; their features are along the last axis."""
    affine = [held[name] for name in ("scale", "bias") if name in held]
    as_held: dict[str, Any] = {
        "use_scale": "scale" in held,
        "use_bias": "bias" in held,
        **({"param_dtype": affine[0].dtype} if affine else {}),
        **({"momentum": None} if norm.is_batch_norm and "count" in held else {}),
    }
    axis = -1 if held["mean"].shape else ()
    always = {"axis": axis, "feature_axes": axis, "use_running_average": True}
    options = {**as_held, **dict(norm.options), **always}
    return norm.constructor(
        parent=None,
        **{n: v for n, v in options.items() if norm.knows(n) and n != "reduction_axes"},
    )


@partial(jax.jit, static_argnums=0)
def _initialized(layer: Any, x: jax.Array) -> dict[str, Any]:
    is_told = hasattr(layer, "use_running_average")
    return layer.init(jax.random.key(0), x, **flags_for(layer, None if is_told else True))
