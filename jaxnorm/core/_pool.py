"""Moments, and how they combine.

All moments are computed by one formula, from sums about a shift s:

    mean = s + Σ(x-s) / n          var = Σ|x-s|² / n - |Σ(x-s) / n|²

It is exact for any s, also under differentiation. It is stable if s is close to the mean: then the
subtraction loses nothing, so float32 is enough at mean/std = 1e4 (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", 1983).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._axes import Axes, canonical_axes
from ._derivative_of import with_derivative_of
from ._elementwise import identity
from ._placement import resharded
from ._portable import is_portable
from ._reduce import sum_elementwise
from .calling._explained import explained
from .calling._serialized import serialized
from .lowering._cpu_hints import divided, stored_share

_Arrays = TypeVar("_Arrays")


@serialized
class Moments(NamedTuple):
    """The mean, variance and count of the values that were reduced.

    The reduced axes keep size 1. Where the count is 0, mean is 0 and var is 1, so that normalizing with them
    does not change values.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> m = jn.Moments(mean=jnp.zeros(3), var=jnp.ones(3), count=jnp.full(3, 32.0))
        >>> print(jn.pool(m, 0).count)
        [96.]
    """

    mean: jax.Array  # float32 or wider; complex for complex values
    var: jax.Array  # real; divided by count, not by count - 1
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # real; has the shape of mean, or broadcasts to it


def moments_from_sums(
    shift: jax.Array, total: jax.Array, squares: jax.Array, count: jax.Array
) -> Moments:
    """Returns the moments of ``count`` values x, given Σ(x - shift) and Σ|x - shift|²."""
    if isinstance(count, np.ndarray) and shift.shape[-1] > 1 and not is_portable():
        n = count.item() or 1
        share = stored_share(n, shift)
        offset, mean_square = divided(total, n, share), divided(squares, n, share)
    else:  # also for rows, which have one length throughout a network
        offset, mean_square = divide_by_count(total, count), divide_by_count(squares, count)
    var = mean_square - abs_square(offset)
    # Rounding can make the variance slightly negative: clip the value, but keep its derivative.
    (var,) = with_derivative_of([jnp.maximum(lax.stop_gradient(var), 0)], [var])
    return Moments(where_counted(shift + offset, count, 0), where_counted(var, count, 1), count)


def divide_by_count(total: jax.Array, count: jax.Array | np.ndarray) -> jax.Array:
    """Returns ``total`` / ``count``, or ``total`` where the count is 0."""
    if isinstance(count, np.ndarray):  # a single static number
        return total / (count.item() or 1)
    # Not max(count, 1): the counts of a user may be weights that add up to less than 1.
    return total / jnp.where(count > 0, count, 1).astype(total.dtype)


def where_counted(value: jax.Array, count: jax.Array | np.ndarray, otherwise: float) -> jax.Array:
    """Returns ``value`` where the count is positive, and ``otherwise`` where it is 0."""
    if isinstance(count, np.ndarray) and count.item() > 0:
        return value
    return jnp.where(count > 0, value, otherwise)


def abs_square(x: jax.Array) -> jax.Array:
    """Returns |x|², which is real and differentiable at 0."""
    if jnp.iscomplexobj(x):
        return lax.add(lax.square(lax.real(x)), lax.square(lax.imag(x)))
    return lax.square(x)


def unbiased_variance(var: jax.Array, count: jax.Array) -> jax.Array:
    """Converts a variance that divides by n to one that divides by n - 1, unless n is less than 2."""
    return var * jnp.where(count >= 2, count / jnp.maximum(count - 1, 1), 1)


@explained
def pool(m: Moments, axes: Axes) -> Moments:
    """Combines the moments ``m`` along ``axes``, which keep size 1.

        n = Σ nᵢ        μ = Σ nᵢ μᵢ / n        σ² = Σ nᵢ (σᵢ² + |μᵢ - μ|²) / n

    Averaging the variances is not enough: the differences between the means are variance too.

    Args:
        m: moments whose ``mean`` and ``var`` have the axes to combine.
        axes: the axes of the moments to combine along.

    Returns:
        Moments with size 1 along ``axes``.

    Raises:
        ValueError: If an axis is out of range or repeated.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> means = jnp.array([0.0, 2.0, 4.0, 6.0])
        >>> replicas = jn.Moments(means, var=jnp.ones(4), count=jnp.full(4, 32.0))
        >>> print(jn.pool(replicas, 0).var)
        [6.]
    """
    m = _as_arrays("m", m)
    axes = canonical_axes(axes, m.mean.ndim, "axes")
    if not axes:
        return m
    n = _along(m, axes)
    # Where the count is 0, mean and var may be anything, even NaN.
    m = Moments(jnp.where(n > 0, m.mean, 0), jnp.where(n > 0, m.var, 0), n)
    count = n.sum(axes, keepdims=True)
    total = (n.astype(m.mean.dtype) * m.mean).sum(axes, keepdims=True)
    shift = lax.stop_gradient(divide_by_count(total, count))
    total, squares = (s.sum(axes, keepdims=True) for s in sums_about(shift, m, n))
    pooled = moments_from_sums(shift, total, squares, count)
    return pooled._replace(count=jnp.broadcast_to(count, pooled.mean.shape))


class Blocks(NamedTuple):
    """A split of ``axis`` into ``number`` blocks of consecutive positions that share statistics."""

    axis: int
    number: int


def sum_blocks(values: Sequence[jax.Array], blocks: Blocks) -> list[jax.Array]:
    """Sums ``values`` within each block. The size of their axis becomes the number of blocks."""
    axis, number = blocks

    def split(a: jax.Array) -> jax.Array:
        a = _partitioned(a, axis, partition_of_blocks(jax.typeof(a), blocks), a)
        before, (size, *after) = a.shape[:axis], a.shape[axis:]
        return a.reshape(*before, number, size // number, *after)

    sums = sum_elementwise(identity, *map(split, values), axes=(axis + 1,))
    return [s.squeeze(axis + 1) for s in sums]


def repeat_blocks(values: _Arrays, blocks: Blocks, like: jax.Array) -> _Arrays:
    """Repeats the value of each block for all of its positions, up to the size of ``like`` along the axis."""
    axis, number = blocks
    size, partition = like.shape[axis], jax.typeof(like).sharding.spec[axis]

    def repeated(a: jax.Array) -> jax.Array:
        before, after = a.shape[:axis], a.shape[axis + 1 :]
        shape = (*before, number, size // number, *after)
        a = jnp.broadcast_to(jnp.expand_dims(a, axis + 1), shape)
        return _partitioned(a.reshape(*before, size, *after), axis, partition, like)

    return jax.tree.map(repeated, values)


def partition_of_blocks(aval: Any, blocks: Blocks) -> Any:
    """Returns how a mesh with explicit axes splits the blocks of an array: like their axis, or not at all."""
    names, mesh = aval.sharding.spec[blocks.axis], aval.sharding.mesh
    several = names if isinstance(names, tuple) else (names,)
    parts = math.prod(mesh.shape[name] for name in several if name is not None)
    return names if blocks.number % parts == 0 else None


def _partitioned(a: jax.Array, axis: int, partition: Any, like: jax.Array) -> jax.Array:
    """Returns ``a`` split along ``axis`` as in ``partition``, on the mesh of ``like`` with explicit axes."""
    spec, mesh = jax.typeof(a).sharding.spec, jax.typeof(like).sharding.mesh
    return resharded(a, mesh, *spec[:axis], partition, *spec[axis + 1 :])


def _along(m: Moments, axes: tuple[int, ...]) -> jax.Array:
    mean, count = m.mean, jnp.asarray(m.count, m.var.dtype)
    count = count.reshape((1,) * (mean.ndim - count.ndim) + count.shape)
    return jnp.broadcast_to(
        count, [mean.shape[i] if i in axes else k for i, k in enumerate(count.shape)]
    )


def sums_about(shift: jax.Array, m: Moments, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Σ(x - shift) and Σ|x - shift|² of the ``count`` values whose moments are ``m``."""
    offset = m.mean - shift
    return count.astype(offset.dtype) * offset, count * (m.var + abs_square(offset))


@explained
def combine(a: Moments, b: Moments) -> Moments:
    """Returns the moments of the values of ``a`` and ``b`` together (`pool` of two).

    This is associative up to rounding. Moments with a count of 0 change nothing.

    Args:
        a: moments.
        b: moments of the same shapes.

    Returns:
        Moments of the same shapes.

    Raises:
        ValueError: If the means have different shapes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jax.random.normal(jax.random.key(0), (100, 3))
        >>> both = jn.combine(jn.moments(x[:10], 0), jn.moments(x[10:], 0))
        >>> print(jnp.allclose(both.var, x.var(0, keepdims=True), rtol=1e-5))
        True
    """
    a, b = _as_arrays("a", a), _as_arrays("b", b)
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"a and b must have means of the same shape; got {a.mean.shape} and {b.mean.shape}. "
            f"Reduce both over the same axes."
        )
    counts = (jnp.broadcast_to(m.count, a.mean.shape) for m in (a, b))
    means, variances, count = (
        jnp.stack(pair) for pair in ((a.mean, b.mean), (a.var, b.var), tuple(counts))
    )
    pooled = pool(Moments(means, variances, count), 0)
    return Moments(*(leaf.squeeze(0) for leaf in pooled))


def _as_arrays(name: str, m: Moments) -> Moments:
    """Returns ``m`` with arrays of jax: those of NumPy may be in float64, and lists have no shape."""
    if not isinstance(m, Moments):
        raise ValueError(
            f"{name} must be Moments(mean, var, count); got {type(m).__name__}. Compute it with moments, "
            f"or convert a tuple t with Moments(*t)."
        )
    return Moments(*map(jnp.asarray, m))
