"""Elementwise functions, and the functions derived from them: derivatives, transposes, and parts of either.

Each is made once and cached, so that whatever jax caches per function (above all a compiled program) is found
again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ._jax import eval_jaxpr, partial_eval

# Takes arrays of one shape and returns one or more of that shape. It is created once, not for each call.
Elementwise: TypeAlias = Callable[..., Sequence[jax.Array]]
Dtypes: TypeAlias = tuple[Any, ...]
Which: TypeAlias = tuple[bool, ...]


def identity(*arrays: jax.Array) -> Sequence[jax.Array]:
    """Returns its arguments: the function whose sums are plain sums."""
    return arrays


def square_in_memory(x: jax.Array) -> Sequence[jax.Array]:
    """Squares a real array that is in memory as it is, not upcast from a narrower one."""
    return (x * x,)


@functools.cache
def result_dtypes(f: Elementwise, dtypes: Dtypes) -> Dtypes:
    """Returns the dtypes of the results of ``f`` for operands of ``dtypes``."""
    scalars = (jax.ShapeDtypeStruct((), dtype) for dtype in dtypes)
    return tuple(result.dtype for result in jax.eval_shape(f, *scalars))


@functools.cache
def tangent_of(f: Elementwise, moves: Which) -> Elementwise:
    """Returns the JVP of ``f``, which takes the operands, then tangents of those marked by ``moves``."""

    def tangent(*arrays: jax.Array) -> Sequence[jax.Array]:
        primals, along = arrays[: len(moves)], arrays[len(moves) :]
        at, still = partition(primals, moves)
        return jax.jvp(lambda *moving: f(*merge(moving, still, moves)), at, along)[1]

    return tangent


@functools.cache
def cotangent_of(f: Elementwise, linear: Which, given: Which, dtypes: Dtypes) -> Elementwise:
    """Returns the transpose of ``f`` with respect to its ``linear`` operands, which have ``dtypes``.

    It takes the other operands, then the cotangents of the results marked by ``given``, and returns the
    cotangents of the ``linear`` operands.
    """
    others_of = linear.count(False)

    def cotangent(*arrays: jax.Array) -> Sequence[jax.Array]:
        others, cotangents = arrays[:others_of], arrays[others_of:]
        linear_in = [jnp.zeros_like(arrays[-1], dtype) for dtype in dtypes]

        def of_linear(*a: jax.Array) -> Sequence[jax.Array]:
            return partition(f(*merge(a, others, linear)), given)[0]

        return jax.linear_transpose(of_linear, *linear_in)(cotangents)

    return cotangent


@functools.cache
def some_of(f: Elementwise, which: tuple[int, ...]) -> Elementwise:
    """Restricts ``f`` to its results with the indices ``which``."""

    def some(*arrays: jax.Array) -> Sequence[jax.Array]:
        results = f(*arrays)
        return [results[i] for i in which]

    return some


@functools.cache
def read_by(f: Elementwise, dtypes: Dtypes) -> Which:
    """Returns which operands the results of ``f`` depend on; at least one is True."""
    _, used = _live(_jaxpr(f, dtypes))
    return tuple(used) if any(used) else (True, *used[1:])


@functools.cache
def shares_work(f: Elementwise, dtypes: Dtypes) -> bool:
    """Returns whether several results of ``f`` depend on the same operation."""
    jaxpr = _jaxpr(f, dtypes)
    results = range(len(jaxpr.outvars))

    def operations(which: Sequence[int]) -> int:
        return len(partial_eval.dce_jaxpr(jaxpr, [i in which for i in results])[0].eqns)

    return sum(operations([i]) for i in results) > operations(results)


@functools.cache
def without_dead_code(f: Elementwise, dtypes: Dtypes) -> Elementwise:
    """Returns ``f`` without operations that no result depends on. Derivatives have many, for jax to lower."""

    def live(*arrays: jax.Array) -> Sequence[jax.Array]:
        traced = jax.make_jaxpr(f)(*arrays)
        jaxpr, read = _live(traced.jaxpr)
        return eval_jaxpr(jaxpr, traced.consts, *partition(arrays, tuple(read))[0])

    jaxpr = _jaxpr(f, dtypes, (1,))  # constants of shape () are not operations
    return f if len(_live(jaxpr)[0].eqns) == len(jaxpr.eqns) else live


@functools.cache
def without_unread(f: Elementwise, read: Which, dtypes: Dtypes) -> Elementwise:
    """Returns ``f`` as a function of only the operands that it reads."""

    def of_read(*arrays: jax.Array) -> Sequence[jax.Array]:
        unread = [jnp.zeros_like(arrays[-1], dtype) for dtype in partition(dtypes, read)[1]]
        return f(*merge(arrays, unread, read))

    return f if all(read) else of_read


def partition(values: Sequence[Any], which: Which) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Splits ``values`` into those for which ``which`` is True, and the others."""
    meant = tuple(v for v, is_meant in zip(values, which, strict=True) if is_meant)
    return meant, tuple(v for v, is_meant in zip(values, which, strict=True) if not is_meant)


def merge(meant: Sequence[Any], others: Sequence[Any], which: Which) -> list[Any]:
    """Undoes `partition`."""
    one, other = iter(meant), iter(others)
    return [next(one if is_meant else other) for is_meant in which]


def _jaxpr(f: Elementwise, dtypes: Dtypes, shape: tuple[int, ...] = ()) -> Any:
    return jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(shape, dtype) for dtype in dtypes)).jaxpr


def _live(jaxpr: Any) -> tuple[Any, Sequence[bool]]:
    """Returns ``jaxpr`` without dead code and without operands that are not read, and which ones are read."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
