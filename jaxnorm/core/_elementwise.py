"""Elementwise functions, and those that follow from them: derivative, transpose, and parts of either.

Each is made once and kept, so that what jax keeps for a function (a compiled program, above all) is found
again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ._jax import partial_eval

# Arrays of one shape in, several of that shape out. A function of a module, not one made for a call.
Elementwise: TypeAlias = Callable[..., Sequence[jax.Array]]
Dtypes: TypeAlias = tuple[Any, ...]
Which: TypeAlias = tuple[bool, ...]


def identity(*arrays: jax.Array) -> Sequence[jax.Array]:
    """What is summed if nothing is computed of it."""
    return arrays


def square_in_memory(x: jax.Array) -> Sequence[jax.Array]:
    """The square of real numbers that lie in memory as they are, not made of narrower ones for this."""
    return (x * x,)


@functools.cache
def result_dtypes(f: Elementwise, dtypes: Dtypes) -> Dtypes:
    """The dtypes of the results of ``f`` for operands of ``dtypes``."""
    scalars = (jax.ShapeDtypeStruct((), dtype) for dtype in dtypes)
    return tuple(result.dtype for result in jax.eval_shape(f, *scalars))


@functools.cache
def tangent_of(f: Elementwise, moves: Which) -> Elementwise:
    """The derivative of ``f``: a function of its operands, then of the directions of those that move."""

    def tangent(*arrays: jax.Array) -> Sequence[jax.Array]:
        primals, along = arrays[: len(moves)], arrays[len(moves) :]
        at, still = partition(primals, moves)
        return jax.jvp(lambda *moving: f(*merge(moving, still, moves)), at, along)[1]

    return tangent


@functools.cache
def cotangent_of(f: Elementwise, linear: Which, given: Which, dtypes: Dtypes) -> Elementwise:
    """The transpose of ``f``: of its other operands, then the cotangents of those results that have one.

    Its results belong to the ``linear`` operands, which are of ``dtypes``.
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
    """A few of the results of ``f``."""

    def some(*arrays: jax.Array) -> Sequence[jax.Array]:
        results = f(*arrays)
        return [results[i] for i in which]

    return some


@functools.cache
def read_by(f: Elementwise, dtypes: Dtypes) -> Which:
    """Which operands the results of ``f`` depend on; at least one."""
    jaxpr = jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct((), dtype) for dtype in dtypes)).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return tuple(used) if any(used) else (True, *used[1:])


@functools.cache
def without_unread(f: Elementwise, read: Which, dtypes: Dtypes) -> Elementwise:
    """``f`` of only those operands that it reads."""

    def of_read(*arrays: jax.Array) -> Sequence[jax.Array]:
        unread = [jnp.zeros_like(arrays[-1], dtype) for dtype in partition(dtypes, read)[1]]
        return f(*merge(arrays, unread, read))

    return f if all(read) else of_read


def partition(values: Sequence[Any], which: Which) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Those of ``values`` that are meant, and the others."""
    meant = tuple(v for v, is_meant in zip(values, which, strict=True) if is_meant)
    return meant, tuple(v for v, is_meant in zip(values, which, strict=True) if not is_meant)


def merge(meant: Sequence[Any], others: Sequence[Any], which: Which) -> list[Any]:
    """What `partition` divided."""
    one, other = iter(meant), iter(others)
    return [next(one if is_meant else other) for is_meant in which]
