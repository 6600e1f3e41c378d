"""A layer called with other weights than its own."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..norms._choice import flags_for

ChangeWeight = Callable[[str, jax.Array], jax.Array]


def name_in(module: nn.Module, collection: str, path: str, what: str) -> str:
    """The name of a variable that belongs to a weight.

    It does not depend on a box. In Flax it does: that name is taken if the variables have it.
    """
    of_flax = f"{path}/value/{what}"
    return of_flax if module.has_variable(collection, of_flax) else f"{path}/{what}"


def call_with(
    change: ChangeWeight,
    layer: nn.Module,
    use_running_average: bool | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``layer(*args, **kwargs)`` with ``change(path, weight)`` for each of its parameters.

    The parameters themselves stay as they are, in ``init`` too: what a wrapper computes of them is never
    stored in their place. A path reads as Flax's wrappers write it, ``Dense_0/kernel``, and does not say
    whether the parameter is boxed: `flax.linen.unbox` changes no name.
    """
    kwargs = {**kwargs, **flags_for(layer, use_running_average)}
    if layer.is_initializing():
        layer(*args, **kwargs)  # makes the parameters

    def changed(path: Any, weight: Any) -> Any:
        _, *inside = path  # the name of the collection comes first
        name = jax.tree_util.keystr(tuple(inside), simple=True, separator="/")
        other = change(f"{layer.name}/{name}", jnp.asarray(nn.meta.unbox(weight)))
        return nn.meta.replace_boxed(weight, other)

    mapped = nn.map_variables(
        lambda layer: layer(*args, **kwargs),
        "params",
        trans_in_fn=partial(jax.tree.map_with_path, changed, is_leaf=nn.meta.is_axis_metadata),
    )
    return mapped(layer)


def is_chosen(path: str, variable_filter: Iterable[str] | None) -> bool:
    """Whether the filter of a wrapper names this parameter: by a part of its path, or by being empty."""
    parts = (variable_filter,) if isinstance(variable_filter, str) else variable_filter
    return not parts or any(part in path for part in parts)
