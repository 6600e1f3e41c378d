"""A layer called with other weights than its own."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.errors import TraceContextError

from ..norms._choice import flags_for

Path = tuple[Any, ...]
KERNELS = nnx.PathContains("kernel")
ChangeWeight = Callable[[Path, Any], Any]


def call_with(
    change: ChangeWeight,
    layer: Any,
    use_running_average: bool | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``layer(*args, **kwargs)`` with ``change(path, parameter)`` for the value of each of its parameters.

    The parameters have their own values again afterwards: what a wrapper computes is never stored.
    """
    kwargs = {**kwargs, **flags_for(layer, use_running_average)}
    parameters = nnx.to_flat_state(nnx.state(layer, nnx.Param))
    own = [(p, p.get_raw_value()) for _, p in parameters]
    changed = [(p, change(path, p)) for path, p in parameters]
    try:
        _set(changed)
        return layer(*args, **kwargs)
    finally:
        _set(own)


def _set(values: list[tuple[Any, Any]]) -> None:
    for variable, value in values:
        # Flax refuses this to a layer that a transform captured, even without its check: a value of one trace
        # must not be left behind for another. None is left here.
        try:
            variable.set_raw_value(value, _unsafe_bypass_check=True)
        except TraceContextError:
            object.__setattr__(variable, "_raw_value", value)


def one_for_each(
    layer: Any, chosen: Callable[[Path, Any], bool], make: Callable[[jax.Array], jax.Array]
) -> dict[Path, nnx.Param]:
    """A new parameter for each of those of ``layer`` that are ``chosen``, by its path."""
    parameters = nnx.to_flat_state(nnx.state(layer, nnx.Param))
    return nnx.data({p: nnx.Param(make(v[...])) for p, v in parameters if chosen(p, v)})
