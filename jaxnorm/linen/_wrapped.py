"""Calls a layer with weights other than its own."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..norms._shared._flags import flags_for
from ..norms._shared._weight_recipe import check_changed

ChangeWeight = Callable[[str, jax.Array], jax.Array | None]


def name_in(module: nn.Module, collection: str, path: str, what: str) -> str:
    """Returns the name of a variable that belongs to a weight.

    The name is the same whether or not the weight is boxed. Flax names it differently for boxed weights; that
    name is used if the variables already contain it.
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
    """Returns ``layer(*args, **kwargs)`` with each parameter replaced by ``change(path, weight)``.

    A change of None leaves the parameter as it is. The parameters themselves do not change, not even in
    ``init``: the replacements are never stored. Paths are written as in Flax's wrappers, ``Dense_0/kernel``.
    They are the same for boxed and unboxed parameters, so `flax.linen.unbox` does not change any name.

    Raises:
        ValueError: If ``layer`` is not a layer, or all changes are None.
    """
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"layer_instance must be a Linen module; got {layer!r}. Construct the layer first."
        )
    kwargs = {**kwargs, **flags_for(layer, use_running_average)}
    if layer.is_initializing():
        layer(*args, **kwargs)  # creates the parameters

    seen: dict[str, bool] = {}

    def changed(path: Any, weight: Any) -> Any:
        _, *inside = path  # the first key is the collection name
        name = f"{layer.name}/{jax.tree_util.keystr(tuple(inside), simple=True, separator='/')}"
        other = change(name, jnp.asarray(nn.meta.unbox(weight)))
        seen[name] = other is not None
        return weight if other is None else nn.meta.replace_boxed(weight, other)

    mapped = nn.map_variables(
        lambda layer: layer(*args, **kwargs),
        "params",
        trans_in_fn=partial(jax.tree.map_with_path, changed, is_leaf=nn.meta.is_axis_metadata),
    )
    y = mapped(layer)
    check_changed([name for name, is_changed in seen.items() if is_changed], list(seen))
    return y


def is_chosen(path: str, variable_filter: Iterable[str] | None) -> bool:
    """Returns whether the filter is empty or one of its strings occurs in ``path``."""
    parts = (variable_filter,) if isinstance(variable_filter, str) else variable_filter
    return not parts or any(part in path for part in parts)
