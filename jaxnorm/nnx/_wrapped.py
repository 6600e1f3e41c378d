"""A layer called with other weights than its own."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

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

    The parameters themselves stay as they are. The layer's other variables (running statistics, random
    streams) are its own, so that what the call writes into them stays.
    """
    kwargs = {**kwargs, **flags_for(layer, use_running_average)}
    graph, parameters, rest = nnx.split(layer, nnx.Param, ...)
    changed = [
        (path, parameter.replace(change(path, parameter)))
        for path, parameter in nnx.to_flat_state(parameters)
    ]
    return nnx.merge(graph, nnx.from_flat_state(changed), rest)(*args, **kwargs)


def one_for_each(
    layer: Any, chosen: Callable[[Path, Any], bool], make: Callable[[jax.Array], jax.Array]
) -> dict[Path, nnx.Param]:
    """A new parameter for each of those of ``layer`` that are ``chosen``, by its path."""
    parameters = nnx.to_flat_state(nnx.state(layer, nnx.Param))
    return nnx.data({p: nnx.Param(make(v[...])) for p, v in parameters if chosen(p, v)})
