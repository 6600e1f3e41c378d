"""Calls a layer with weights other than its own."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ..norms._shared._flags import flags_for
from ..norms._shared._weight_recipe import check_changed

Path = tuple[Any, ...]
Predicate = Callable[[Path, Any], bool]
KERNELS = nnx.PathContains("kernel")
ChangeWeight = Callable[[Path, Any], Any]


def parameters_of(layer: Any) -> list[tuple[Path, Any]]:
    """The parameters of a layer, with their paths.

    Raises:
        ValueError: If it is not a layer.
    """
    if not isinstance(layer, nnx.Module):
        raise ValueError(
            f"layer_instance must be an NNX module; got {layer!r}. Construct the layer first."
        )
    return list(nnx.to_flat_state(nnx.state(layer, nnx.Param)))


def call_with(
    change: ChangeWeight,
    layer: Any,
    use_running_average: bool | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Returns ``layer(*args, **kwargs)`` with each parameter set to ``change(path, parameter)``.

    A change of None leaves the parameter as it is. Afterwards the parameters have their own values again: the
    replacements are never stored.

    Raises:
        ValueError: If all changes are None.
    """
    kwargs = {**kwargs, **flags_for(layer, use_running_average)}
    parameters = parameters_of(layer)
    changes = [(p, change(path, p)) for path, p in parameters]
    changed = [(p, value) for p, value in changes if value is not None]
    own = [(p, p.get_raw_value()) for p, _ in changed]
    check_changed(own, ["/".join(map(str, path)) for path, _ in parameters])
    try:
        _set(changed)
        return layer(*args, **kwargs)
    finally:
        _set(own)


def _set(values: list[tuple[Any, Any]]) -> None:
    for variable, value in values:
        # If a transform captured the layer, `set_raw_value` raises, because values must not leak from one
        # trace into another. They do not: call_with restores the original values.
        object.__setattr__(variable, "_raw_value", value)


def one_for_each(
    layer: Any, chosen: Predicate, make: Callable[[jax.Array], jax.Array | None]
) -> dict[Path, nnx.Param[jax.Array]]:
    """Creates a new parameter for each ``chosen`` parameter of ``layer``, keyed by its path.

    Those for which ``make`` returns None get no new parameter.
    """
    made = {path: make(own[...]) for path, own in parameters_of(layer) if chosen(path, own)}
    return nnx.data({path: nnx.Param(new) for path, new in made.items() if new is not None})
