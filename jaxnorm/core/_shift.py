"""Sums about the mean of a few elements, which are read first. Any shift near the mean will do (`_pool`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._axes import is_static, size_of
from ._elementwise import Elementwise, identity
from ._pool import Blocks, abs_square, divide_by_count, repeat_blocks, sum_blocks
from ._reduce import sum_elementwise


def about_a_few(
    x: jax.Array,
    narrow: jax.Array,
    mask: jax.Array | None,
    axes: tuple[int, ...],
    blocks: Blocks | None,
) -> list[jax.Array]:
    """Returns the shift, Σ(x - shift) and Σ|x - shift|² over ``axes``; with ``blocks``, for each block.

    This takes one pass over ``x``, or two with a mask or a symbolic shape. The few elements are sliced from
    ``narrow``, the array in memory from which ``x`` was upcast: to slice ``x`` itself, a compiler may first
    store all of it in float32.
    """
    # With a mask, the few elements may all be padding. With a symbolic shape, it is not known how many are
    # enough. In both cases, the mean takes a separate pass.
    any_are_known = mask is None and is_static(x.shape)
    shift = (
        _mean_of_a_few(narrow, x, axes, blocks) if any_are_known else mean_of(x, mask, axes, blocks)
    )
    return [shift, *about(shift, x, mask, axes, blocks)]


def about(
    shift: jax.Array,
    x: jax.Array,
    mask: jax.Array | None,
    axes: tuple[int, ...],
    blocks: Blocks | None,
) -> list[jax.Array]:
    """Returns Σ(x - shift) and Σ|x - shift|² over ``axes``; with ``blocks``, each block has its own shift."""
    if blocks is not None:
        shift = repeat_blocks(shift, blocks, x)
    f, counted = powers_about(mask)
    sums = sum_elementwise(f, x, shift, *counted, axes=axes)
    return sums if blocks is None else sum_blocks(sums, blocks)


def mean_of(
    x: jax.Array, mask: jax.Array | None, axes: tuple[int, ...], blocks: Blocks | None = None
) -> jax.Array:
    """Returns the mean, as accurately as one pass computes it."""
    sums = (
        sum_elementwise(identity, x, axes=axes)
        if mask is None
        else sum_elementwise(_counted, x, mask, axes=axes)
    )
    total = (sums if blocks is None else sum_blocks(sums, blocks))[0]
    return divide_by_count(total, count(x, mask, axes, blocks))


def powers_about(mask: jax.Array | None) -> tuple[Elementwise, tuple[jax.Array, ...]]:
    """Returns the function of x and a shift to sum, and its other operands."""
    return (_powers_about, ()) if mask is None else (_counted_powers_about, (mask,))


def count(
    x: jax.Array, mask: jax.Array | None, axes: tuple[int, ...], blocks: Blocks | None = None
) -> jax.Array:
    """Returns how many elements each sum has: one static number, in NumPy, if shapes determine it."""
    dtype = x.real.dtype
    in_block = 1 if blocks is None else x.shape[blocks.axis] // blocks.number
    if mask is None:
        n = size_of(x, axes) * in_block  # not an int if a shape is symbolic
        return (np if isinstance(n, int) else jnp).full((1,) * x.ndim, n, dtype)  # pyright: ignore[reportReturnType]
    counted = mask.sum(axes, keepdims=True, dtype=dtype)
    # Axes along which the mask is broadcast.
    counted = counted * size_of(x, tuple(i for i in axes if mask.shape[i] == 1))
    if blocks is None or counted.shape[blocks.axis] == 1:
        return counted * in_block
    return sum_blocks([counted], blocks)[0]


def _mean_of_a_few(
    narrow: jax.Array, x: jax.Array, axes: tuple[int, ...], blocks: Blocks | None
) -> jax.Array:
    """Returns the mean of a few elements; with ``blocks``, for each block.

    Without outliers one element would do: a shift that is off by d loses a factor of d²/σ² in precision. The
    mean of n/512 of n values is off by at most sqrt(512) σ, whatever the values are.
    """
    few = _a_few(narrow, axes).astype(x.dtype)
    n = size_of(few, axes) * (1 if blocks is None else x.shape[blocks.axis] // blocks.number)
    # Divide before summing: then the pass over x reads the sum itself, and nothing is computed from it.
    share = _share_of(max(n, 1))
    if x.ndim - 1 in axes:
        sums = sum_elementwise(share, few, axes=axes)
    else:  # on a CPU, a plain sum of so little is one program instead of several, and compiled sooner
        sums = [r.sum(axes, keepdims=True) for r in share(few)]
    return (sums if blocks is None else sum_blocks(sums, blocks))[0]


def _a_few(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Slices about one in 512 elements of ``x`` along ``axes``, and at least one."""
    # A mesh may split the first of the axes, and slicing that would move data between devices. So the first
    # axis is kept whole if the others have enough elements.
    rest = axes[1:]
    sliced = rest if size_of(x, rest) >= 16 else axes
    few, wanted = x, max(1, -(-size_of(x, sliced) // 512))
    split = jax.typeof(x).sharding.spec  # an axis split by an explicit mesh cannot be sliced
    for axis in reversed(sliced):
        if split[axis] is not None:
            continue
        length = min(x.shape[axis], wanted)
        few = lax.slice_in_dim(few, 0, length, axis=axis)
        wanted = -(-wanted // max(length, 1))
    return few


@functools.cache
def _share_of(n: int) -> Elementwise:
    def share(x: jax.Array) -> tuple[jax.Array]:
        return (x * (1 / n),)

    return share


def _powers_about(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    centered = lax.sub(x, shift)
    return centered, abs_square(centered)


def _counted_powers_about(
    x: jax.Array, shift: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    centered = jnp.where(mask, x - shift, 0)
    return centered, abs_square(centered)


def _counted(x: jax.Array, mask: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(mask, x, 0),)
