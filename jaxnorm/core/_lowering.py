"""How a primitive becomes part of a program, or a program of its own."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ._jax import Primitive, mlir


def runs_as(primitive: Primitive, plain: Callable[..., Any], *static: str) -> None:
    """Outside of jit, ``primitive`` runs as a program of its own; where jit is disabled, as ``plain``."""
    compiled = jax.jit(primitive.bind, static_argnames=static)

    def run(*operands: jax.Array, **params: Any) -> Any:
        return (plain if jax.config.jax_disable_jit else compiled)(*operands, **params)  # pyright: ignore[reportAttributeAccessIssue]

    primitive.def_impl(run)


@functools.cache
def lowered_by(compute: Callable[..., Any], **params: Any) -> Callable[..., Any]:
    """The lowering by a function with these parameters, which is traced once.

    It is one function of the program, however often it is called; on a GPU it is written out, because XLA:GPU
    looks for rows that fit into one kernel before it does that itself.
    """
    function = functools.partial(compute, **params)
    called, written_out = (
        mlir.lower_fun(jax.jit(function, inline=inline), multiple_results=True)
        for inline in (False, True)
    )

    def lower(context: Any, *operands: Any) -> Any:
        platforms = context.platforms or context.module_context.platforms
        on_gpu = {"cuda", "rocm"} & set(platforms)
        return (written_out if on_gpu else called)(context, *operands)

    return lower


def is_partitioned(context: Any) -> bool:
    """Whether the compiler is to split the program over devices, and not shard_map or pmap."""
    place = context.module_context.axis_context
    if isinstance(place, mlir.SPMDAxisContext):
        return set(place.manual_axes) != set(place.mesh.axis_names)
    return getattr(place, "num_devices", 1) != 1
