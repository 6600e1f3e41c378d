"""Moments of an activation, computed in one pass."""

import jax
import jax.numpy as jnp
from jax import lax

from ._all_reduce import AxisIndexGroups, AxisName, axis_names
from ._axes import Axes, broadcasts_to, canonical_axes
from ._central_sums import central_sums
from ._derivative_of import with_derivative_of
from ._elementwise import square_in_memory
from ._pool import Blocks, Moments, abs_square, divide_by_count, moments_from_sums, where_counted
from ._precision import upcast
from ._reduce import sum_elementwise
from ._residuals import rematerialized, saveable
from ._shift import about, count
from ._sync import pool_over_devices
from .calling._public import public


@public
def moments(
    x: jax.Array,
    reduction_axes: Axes,
    *,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
) -> Moments:
    """Computes the mean, variance and count of ``x`` over ``reduction_axes``.

        n = Σ mask        μ = Σ x / n        σ² = Σ |x - μ|² / n        (sums where mask is True)

    Args:
        x: values of any rank and any integer, floating (16 bits or wider) or complex dtype.
        reduction_axes: the axes to reduce; they keep size 1.
        mask: True where an element is included. Boolean or integer, broadcastable to ``x``. Masked elements
            are never read, even if they are NaN.
        axis_name: one or more axes of vmap, pmap or shard_map to reduce over as well, weighted by count.
            Under jit over a mesh no name is needed.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.

    Returns:
        Moments in float32 or wider. Where all elements are masked, mean is 0, var is 1 and count is 0.

    Raises:
        ValueError: If an axis is out of range or repeated, or ``mask`` has the wrong dtype or shape.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0, 5.0], [3.0, jnp.nan]])
        >>> m = jn.moments(x, 0, mask=~jnp.isnan(x))
        >>> print(m.mean, m.var, m.count)
        [[2. 5.]] [[1. 0.]] [[2. 1.]]
    """
    x = jnp.asarray(x)
    axes = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    mask = broadcast_mask(mask, x)

    @rematerialized
    def measured(x: jax.Array, mask: jax.Array | None) -> Moments:
        m = reduce_moments(upcast(x), axes, mask, axis_name, axis_index_groups, narrow=x)
        return m._replace(count=jnp.broadcast_to(m.count, m.mean.shape))

    return measured(x, mask)


def reduce_moments(
    x: jax.Array,
    axes: tuple[int, ...],
    mask: jax.Array | None,
    axis_name: AxisName | None,
    axis_index_groups: AxisIndexGroups | None,
    blocks: Blocks | None = None,
    *,
    narrow: jax.Array | None = None,
    guess: jax.Array | None = None,
) -> Moments:
    """Computes `moments` of an ``x`` that is already upcast, with canonical ``axes`` and a checked ``mask``.

    ``narrow`` is the array in memory from which ``x`` was upcast, if known; ``guess`` estimates the mean.

    This takes one pass over ``x`` (two with a mask), and sums of small arrays within ``blocks`` and over the
    devices.
    """
    sums = central_sums(x, axes, narrow=narrow, mask=mask, guess=guess, blocks=blocks)
    m = moments_from_sums(*sums, count(x, mask, axes, blocks))
    return pool_over_devices(m, axis_name, axis_index_groups)


def reduce_moments_about_zero(
    x: jax.Array,
    axes: tuple[int, ...],
    mask: jax.Array | None,
    axis_name: AxisName | None,
    axis_index_groups: AxisIndexGroups | None,
    *,
    widened: bool = True,
) -> Moments:
    """Computes moments for norms that subtract no mean: mean is 0, and var is the mean square Σ|x|² / n.

    Arguments are as in `reduce_moments`. ``widened`` means that ``x`` was upcast from a narrower array, and
    only that array is in memory.
    """
    if mask is not None:
        sums = sum_elementwise(_counted_square, x, mask, axes=axes)
    else:
        f = _square if widened or jnp.iscomplexobj(x) else square_in_memory
        sums = sum_elementwise(f, x, axes=axes)
    (squares,) = map(saveable, sums)
    n = count(x, mask, axes)
    var = where_counted(divide_by_count(squares, n), n, 1)
    m = Moments(jnp.zeros_like(squares, x.dtype), var, n)
    return pool_over_devices(m, axis_name, axis_index_groups)


def moments_with_derivative(
    m: Moments, x: jax.Array, axes: tuple[int, ...], axis_name: AxisName | None
) -> Moments:
    """Returns ``m``, the moments of ``x``, with their derivative with respect to ``x``."""
    mean = lax.stop_gradient(m.mean)
    own = about(mean, x, None, axes, None)
    known = jnp.zeros_like(mean), m.count * m.var
    total, squares = with_derivative_of(known, own, axis_names(axis_name))
    return moments_from_sums(mean, total, squares, m.count)


def broadcast_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """Returns ``mask`` as a boolean array of the rank of ``x``.

    Raises:
        ValueError: If ``mask`` is not boolean or integer, or does not broadcast to ``x``.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise ValueError(
            f"mask must be boolean or integer (True or nonzero includes an element); got {mask.dtype.name}. "
            f"Compare it with a threshold, as in mask > 0.5: statistics include an element or exclude it."
        )
    if not broadcasts_to(mask, x):
        raise ValueError(
            f"mask must broadcast to x; got mask of shape {mask.shape} for x of shape {x.shape}. "
            f"Axes are aligned from the last: a mask of the examples in x needs shape "
            f"{x.shape[:1] + (1,) * (x.ndim - 1)}."
        )
    return mask.astype(bool).reshape((1,) * (x.ndim - mask.ndim) + mask.shape)


def _square(x: jax.Array) -> tuple[jax.Array]:
    return (abs_square(x),)


def _counted_square(x: jax.Array, mask: jax.Array) -> tuple[jax.Array]:
    return _square(jnp.where(mask, x, 0))
