"""Lowers primitives as part of a program, and compiles them as programs of their own outside of jit."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from .._jax import Primitive, mlir


def runs_as(primitive: Primitive, plain: Callable[..., Any], *static: str) -> None:
    """Makes ``primitive`` run as its own program outside of jit, and as ``plain`` if jit is disabled.

    ``static`` names the parameters of the primitive.
    """
    compiled = jax.jit(primitive.bind, static_argnames=static)

    def run(*operands: jax.Array, **params: Any) -> Any:
        return (plain if jax.config.jax_disable_jit else compiled)(*operands, **params)  # pyright: ignore[reportAttributeAccessIssue]

    primitive.def_impl(run)


@functools.cache
def lowered_by(compute: Callable[..., Any], **params: Any) -> Callable[..., Any]:
    """Returns the lowering rule for ``compute`` with these parameters. It traces ``compute`` only once.

    A program contains ``compute`` as one function, however often it is called. On a GPU, ``compute`` is
    inlined instead, because XLA:GPU looks for rows that fit into one kernel before it inlines calls itself.
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
    """Returns whether the compiler partitions the program over devices, rather than shard_map or pmap."""
    return devices_of(context) > 1


def devices_of(context: Any) -> int:
    """Returns over how many devices the compiler partitions the program; 1 if shard_map or pmap does that."""
    place = context.module_context.axis_context
    if isinstance(place, mlir.SPMDAxisContext):
        sizes = place.mesh.shape
        return math.prod(sizes[name] for name in sizes if name not in place.manual_axes)
    return getattr(place, "num_devices", 1)
