"""Moments of an activation, taken in one pass."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ._axes import Axes, canonical_axes, size_of
from ._elementwise import Elementwise, square_in_memory
from ._known import as_known
from ._pool import Blocks, Moments, abs_square, moments_from_sums, repeat_blocks, sum_blocks
from ._precision import upcast
from ._reduce import collect
from ._residuals import keep, lean
from ._sync import AxisIndexGroups, AxisName, pool_over_devices


def moments(
    x: jax.Array,
    reduction_axes: Axes,
    *,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
) -> Moments:
    """Mean, variance and count of ``x`` over ``reduction_axes``.

        n = Σ mask        μ = Σ x / n        σ² = Σ |x - μ|² / n        (sums where mask is True)

    Args:
        x: values of any rank and any integer, floating (16 bits or wider) or complex dtype.
        reduction_axes: the axes to reduce; they stay with size 1.
        mask: True counts. Boolean or integer, broadcastable to ``x``. What is masked is never read, even
            if it is NaN.
        axis_name: one or several axes of vmap, pmap or shard_map to reduce over as well, weighted by
            count. Under jit over a mesh no name is needed.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.

    Returns:
        Moments in float32 or wider. Where nothing is counted, mean is 0, var is 1 and count is 0.

    Raises:
        ValueError: an axis is out of range or repeated, or ``mask`` does not fit ``x``.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0, 5.0], [3.0, jnp.nan]])
        >>> m = jn.moments(x, 0, mask=~jnp.isnan(x))
        >>> print(m.mean, m.var, m.count)
        [[2. 5.]] [[1. 0.]] [[2. 1.]]
    """
    x = jnp.asarray(x)
    axes = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    mask = mask_against(mask, x)

    @lean
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
) -> Moments:
    """`moments` of a wide enough ``x``, with ``axes`` and ``mask`` in order.

    ``narrow`` is ``x`` as it lies in memory, if that is known. A few elements are read of that: a compiler
    that is to slice what it has widened may store all of it in float32 first.

    One pass over ``x`` (two with a mask), and sums of small arrays within ``blocks`` and over the devices.
    """
    count = _count(x, axes, mask)
    shift = own = lax.stop_gradient(_a_value_near_the_mean(x, axes, mask, count, blocks, narrow))
    if blocks is not None:
        shift = repeat_blocks(shift, blocks, x)
    if mask is None:
        sums = collect(_powers_about, x, shift, axes=axes)
    else:
        sums = collect(_counted_powers_about, x, shift, mask, axes=axes)
    if blocks is not None:
        count, sums = _count_of_blocks(count, x, blocks), sum_blocks(sums, blocks)
    total, squares = map(keep, sums)
    m = moments_from_sums(own, total, squares, count)
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
    """As `reduce_moments`, for norms that subtract nothing: mean 0, and var the mean square Σ|x|² / n.

    ``widened``: ``x`` is made of a narrower array, and lies in memory only as that.
    """
    if mask is not None:
        sums = collect(_counted_square, x, mask, axes=axes)
    else:
        f = _square if widened or jnp.iscomplexobj(x) else square_in_memory
        sums = collect(f, x, axes=axes)
    (squares,) = map(keep, sums)
    count = _count(x, axes, mask)
    var = jnp.where(count > 0, squares / jnp.maximum(count, 1), 1)
    m = Moments(jnp.zeros_like(squares, x.dtype), var, count)
    return pool_over_devices(m, axis_name, axis_index_groups)


def moments_as_known(
    m: Moments, x: jax.Array, axes: tuple[int, ...], axis_name: AxisName | None
) -> Moments:
    """``m``, which are the moments of ``x``, with the derivative that they have there."""
    mean = lax.stop_gradient(m.mean)
    own = collect(_powers_about, x, mean, axes=axes)

    def over_devices(sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return sums if axis_name is None else lax.psum(sums, axis_name)

    known = jnp.zeros_like(mean), m.count * m.var
    total, squares = as_known(over_devices, tuple(own), known)
    return moments_from_sums(mean, total, squares, m.count)


def mask_against(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """``mask`` as booleans of the rank of ``x``.

    Raises:
        ValueError: it is not boolean or integer, or does not broadcast to ``x``.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise ValueError(
            f"mask must be boolean or integer (True or nonzero counts); got {mask.dtype.name}. "
            f"Compare it with something, as in mask > 0.5: statistics count a value or do not."
        )
    trailing = x.shape[x.ndim - mask.ndim :] if mask.ndim <= x.ndim else ()
    if mask.ndim > x.ndim or any(
        k not in (1, n) for k, n in zip(mask.shape, trailing, strict=True)
    ):
        raise ValueError(
            f"mask must broadcast to x; got mask of shape {mask.shape} for x of shape {x.shape}. "
            f"Axes are matched from the last: a mask of examples in x needs shape "
            f"{x.shape[:1] + (1,) * (x.ndim - 1)}."
        )
    return mask.astype(bool).reshape((1,) * (x.ndim - mask.ndim) + mask.shape)


def _count(x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> jax.Array:
    dtype = x.real.dtype
    if mask is None:
        return jnp.full((1,) * x.ndim, size_of(x, axes), dtype)
    counted = mask.sum(axes, keepdims=True, dtype=dtype)
    repeats = size_of(
        x, tuple(i for i in axes if mask.shape[i] == 1)
    )  # where the mask is broadcast
    return counted * repeats


def _count_of_blocks(count: jax.Array, x: jax.Array, blocks: Blocks) -> jax.Array:
    axis, number = blocks
    if count.shape[axis] == 1:
        return count * (x.shape[axis] // number)
    return sum_blocks([count], blocks)[0]


def _a_value_near_the_mean(
    x: jax.Array,
    axes: tuple[int, ...],
    mask: jax.Array | None,
    count: jax.Array,
    blocks: Blocks | None,
    narrow: jax.Array | None,
) -> jax.Array:
    """The mean with a mask, the mean of a few elements without; of each block if there are any.

    One element would do but for outliers: a shift that is off by d costs d²/σ² of the precision. Of n
    values, the mean of n/512 is off by at most sqrt(512) σ, whatever they are.
    """
    if mask is None:
        few = _a_few(x if narrow is None else narrow, axes).astype(x.dtype)
        n = size_of(few, axes) * (1 if blocks is None else x.shape[blocks.axis] // blocks.number)
        # Divided before it is summed: what is read with x is then the sum, and nothing is made of that.
        sums = collect(_share_of(max(n, 1)), few, axes=axes)
        return (sums if blocks is None else sum_blocks(sums, blocks))[0]
    # Any few elements may be padding, so this takes a pass of its own.
    sums = collect(_counted, x, mask, axes=axes)
    if blocks is not None:
        count, sums = _count_of_blocks(count, x, blocks), sum_blocks(sums, blocks)
    total = keep(sums[0])
    return total / jnp.maximum(count, 1).astype(total.dtype)


@functools.cache
def _share_of(n: int) -> Elementwise:
    def share(x: jax.Array) -> tuple[jax.Array]:
        return (x * (1 / n),)

    return share


def _a_few(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A part of ``x`` that has an element of 512 along ``axes``, and at least one."""
    # A mesh may split the first of the axes, and a slice of that would move between devices. So it is kept
    # whole where the others have enough to choose from.
    rest = axes[1:]
    sliced = rest if size_of(x, rest) >= 16 else axes
    few, wanted = x, max(1, -(-size_of(x, sliced) // 512))
    split = jax.typeof(x).sharding.spec  # by a mesh with explicit axes, which takes no slice there
    for axis in reversed(sliced):
        if split[axis] is not None:
            continue
        length = min(x.shape[axis], wanted)
        few = lax.slice_in_dim(few, 0, length, axis=axis)
        wanted = -(-wanted // max(length, 1))
    return few


def _powers_about(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x - shift, abs_square(x - shift)


def _counted_powers_about(
    x: jax.Array, shift: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    centered = jnp.where(mask, x - shift, 0)
    return centered, abs_square(centered)


def _square(x: jax.Array) -> tuple[jax.Array]:
    return (abs_square(x),)


def _counted_square(x: jax.Array, mask: jax.Array) -> tuple[jax.Array]:
    return _square(jnp.where(mask, x, 0))


def _counted(x: jax.Array, mask: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(mask, x, 0),)
