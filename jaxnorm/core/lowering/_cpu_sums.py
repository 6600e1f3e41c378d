"""Computes sums of an elementwise function on a CPU: in one vectorized pass, without storing the summands.

XLA:CPU has three ways to compute a sum. It hands a reduction with one result to a library, and first stores
the summands in memory: fast for the squares of an array that is already there, slow for anything else. It
compiles a long reduction with several results to scalar code. It unrolls a short one, and vectorizes it over
the axis that follows. So all other sums here have several results and are taken in short steps: the first
folds an axis of the activation, the others reduce what is left. The figures are in benchmarks/README.md.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from .._elementwise import Elementwise, identity, square_in_memory

Shape: TypeAlias = tuple[int, ...]

# (largest number of operands, most elements to fold): XLA does not unroll longer folds, and the limit is
# lower if f has more operands.
_LONGEST = ((4, 16), (math.inf, 14))
_LONGEST_IN_A_ROW = ((2, 32), (math.inf, 16))  # for the last axis, which stays in the cache
# The fewest elements to fold, if the axis is long enough: with shorter folds, the float32 partial sums of a
# bfloat16 activation take half as much memory as the activation.
_SHORTEST = 9
# XLA hands sums of at least this many elements to the library. It compiles smaller ones to scalar code.
_LIBRARY_TAKES = 32 * 1024
# The smallest size to leave in the last axis for vectorization, ideally a multiple of this.
_LANES = 8
# The distance between the elements of a row that are added: one vector, so that the row is read in order.
_STEP = 8


def sums_on_cpu(
    *operands: jax.Array, f: Elementwise, axes: tuple[int, ...], shape: Shape
) -> list[jax.Array]:
    """Sums the results of ``f`` over ``axes``. Operands broadcast to ``shape``, which has no size 0."""
    if f is square_in_memory and axes == (len(shape) - 1,) and _for_the_library(*operands):
        return [r.sum(axes, keepdims=True) for r in f(*operands)]
    sizes = [1 if i in axes else n for i, n in enumerate(shape)]
    axes = tuple(i for i in axes if shape[i] > 1)
    if all(shape[i] < _SHORTEST for i in axes):
        operands, axes, shape = _with_neighbours_merged(operands, axes, shape)
    return [s.reshape(sizes) for s in _sums(operands, f, axes, shape)]


def _for_the_library(x: jax.Array) -> bool:
    return x.dtype == jnp.float32 and x.size >= _LIBRARY_TAKES


def _with_neighbours_merged(
    operands: Sequence[jax.Array], axes: tuple[int, ...], shape: Shape
) -> tuple[tuple[jax.Array, ...], tuple[int, ...], Shape]:
    """Merges two adjacent ``axes`` into one, if no operand is broadcast along only one of the two.

    Operands of the full shape stay as they are, for `_sums` to reshape.
    """
    for i, j in itertools.pairwise(axes):
        pairs = {(a.shape[i], a.shape[j]) for a in operands}
        if j == i + 1 and pairs <= {(1, 1), (shape[i], shape[j])}:
            merged = tuple(
                a if a.shape == shape else a.reshape(*a.shape[:i], -1, *a.shape[j + 1 :])
                for a in operands
            )
            fewer = tuple(k if k <= i else k - 1 for k in axes if k != j)
            return merged, fewer, (*shape[:i], shape[i] * shape[j], *shape[j + 1 :])
    return tuple(operands), axes, shape


def _sums(
    operands: Sequence[jax.Array], f: Elementwise, axes: tuple[int, ...], shape: Shape
) -> Sequence[jax.Array]:
    """Folds one axis, then sums what is left of it and of the other axes.

    Operands broadcast to ``shape``, or have its elements in another shape. The sums may have any shape.
    """
    last = len(shape) - 1
    lengths = {i: _fold_length(shape[i], i == last, len(operands)) for i in axes}
    axis = max(axes, key=lambda i: (min(lengths[i], _SHORTEST), i != last, shape[i]))
    size, length = shape[axis], lengths[axis]
    whole = size - size % length
    sums = _fold(
        _part(operands, shape, axis, 0, whole), f, axis, length, _resized(shape, axis, whole)
    )
    folded = _resized(shape, axis, whole // length)
    left = tuple(i for i in axes if folded[i] > 1)
    if left:
        sums = _sums_of_stored(sums, left, folded)
    if whole == size:
        return sums
    rest = _resized(shape, axis, size - whole)
    tails = _sums(_part(operands, shape, axis, whole, size), f, axes, rest)
    return [s.reshape(tail.shape) + tail for s, tail in zip(sums, tails, strict=True)]


def _sums_of_stored(
    arrays: Sequence[jax.Array], axes: tuple[int, ...], sizes: Shape
) -> Sequence[jax.Array]:
    """Sums arrays of shape ``sizes`` over ``axes``. Merges adjacent ones, so that fewer steps are left."""
    last = len(sizes) - 1
    parts = [
        (reduced, math.prod(n for _, n in group))
        for (reduced, _), group in itertools.groupby(
            ((i, n) for i, n in enumerate(sizes) if n > 1 or i == last),
            lambda part: (part[0] in axes, part[0] == last),
        )
    ]
    shape = tuple(n for _, n in parts)
    return _sums(arrays, identity, tuple(i for i, (r, _) in enumerate(parts) if r), shape)


def _part(
    operands: Sequence[jax.Array], shape: Shape, axis: int, start: int, stop: int
) -> Sequence[jax.Array]:
    if stop - start == shape[axis]:
        return operands
    shaped = [a.reshape(shape) if a.size == math.prod(shape) else a for a in operands]
    return [
        a if a.shape[axis] == 1 else lax.slice_in_dim(a, start, stop, axis=axis) for a in shaped
    ]


def _resized(shape: Shape, axis: int, *sizes: int) -> Shape:
    return (*shape[:axis], *sizes, *shape[axis + 1 :])


def _fold_length(size: int, is_last: bool, operands: int) -> int:
    """Returns how many elements to fold: a divisor of ``size`` if there is one of suitable length."""
    limits = _LONGEST_IN_A_ROW if is_last else _LONGEST
    longest = next(length for most, length in limits if operands <= most)
    if is_last:
        longest = max(1, min(longest, size // _LANES))
    if size <= longest or longest == 1:
        return size
    shortest = min(_SHORTEST, longest // 2 + 1)
    divisors = [k for k in range(shortest, longest + 1) if size % k == 0]
    if not is_last or not divisors:
        return max(divisors, default=min(longest, 16))
    return max(divisors, key=lambda k: (size // k % _LANES == 0, k))


def _fold(
    operands: Sequence[jax.Array], f: Elementwise, axis: int, length: int, shape: Shape
) -> Sequence[jax.Array]:
    """Sums groups of ``length`` elements along ``axis``, for all results of ``f`` in one reduction.

    The order of the sums decides how fast memory is read. Along the last axis, this adds elements that are
    one vector apart, so that a row is read from beginning to end. Any other axis is split into ``length``
    parts, each of them read from beginning to end, and the parts are added.
    """
    left = shape[axis] // length
    lanes = _STEP if axis == len(shape) - 1 and left % _STEP == 0 else left
    parts = (left // lanes, length, lanes)
    full = _resized(shape, axis, *parts)

    def split(a: jax.Array) -> jax.Array:
        if a.size == math.prod(full):
            return a.reshape(full)
        if a.shape[axis] == 1:
            return lax.broadcast_in_dim(a, full, (*range(axis + 1), *range(axis + 3, len(full))))
        a = a.reshape(_resized(a.shape, axis, *parts))
        return lax.broadcast_in_dim(a, full, tuple(range(a.ndim)))

    results = f(*map(split, operands))
    if len(results) > 1:
        return _reduce(results, axis + 1)
    # The negative makes it a reduction with two results.
    total, negative = _reduce((results[0], -results[0]), axis + 1)
    return [total / 2 - negative / 2]


def _reduce(arrays: Sequence[jax.Array], axis: int) -> Sequence[jax.Array]:
    def add(xs: Sequence[jax.Array], ys: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(x + y for x, y in zip(xs, ys, strict=True))

    zeros = tuple(jnp.zeros((), a.dtype) for a in arrays)
    return lax.reduce(tuple(arrays), zeros, add, (axis,))
