"""Sums about the mean without a shift, from plain sums of parts of x and x² that float32 adds exactly.

XLA:TPU can fuse any number of plain sums of functions of x into the matmul or convolution that makes x, but
not sums about a shift that is read from x. Plain sums of x and x² lose the bits that their difference needs.
So x and x² are split into parts with so few bits that all partial sums of each part are exact in float32. The
rest is arithmetic on small arrays in pairs of float32 (Dekker, "A floating-point technique for extending the
available precision", 1971).

The variance is as accurate as from two passes, up to mean/std = 1e4 in float32. x² must not overflow.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ._elementwise import Elementwise
from ._reduce import sum_elementwise

_Pair: TypeAlias = tuple[jax.Array, jax.Array]  # a rounded value and its rounding error


def most_elements(dtype: jnp.dtype) -> int:
    """Returns the largest number of elements of ``dtype`` whose sums are exact; 0 if no sums are."""
    return {"bfloat16": 65536, "float16": 4096, "float32": 4096}.get(dtype.name, 0)


def exact_sums(
    x: jax.Array,
    dtype: jnp.dtype,
    mask: jax.Array | None,
    count: jax.Array,
    axes: tuple[int, ...],
) -> list[jax.Array]:
    """Returns the rounded mean, Σ(x - mean) and Σ|x - mean|² of a float32 ``x``, upcast from ``dtype``."""
    f = _PARTS[dtype.name]
    if mask is not None:
        x = jnp.where(mask, x, 0)
    parts = sum_elementwise(f, x, axes=axes)
    if dtype == jnp.float32:
        high, low, *of_square = parts
        total = _sum(high, low)
    else:
        total_high, *of_square = parts
        total = total_high, jnp.zeros_like(total_high)
    square = _sum(*of_square[:2])
    if len(of_square) == 3:
        square = _sum(square[0], square[1] + of_square[2])
    return _about_mean(total, square, count)


def _about_mean(total: _Pair, square: _Pair, count: jax.Array) -> list[jax.Array]:
    mean = (total[0] + total[1]) / jnp.maximum(count, 1)
    all_means, mean_total = _product(mean, count), _product(mean, total[0])
    rest = ((total[0] - all_means[0]) - all_means[1]) + total[1]  # Σx - n·mean
    # Σ(x - mean)² = Σx² - mean·Σx - mean·Σ(x - mean)
    low = square[1] - mean_total[1] - mean * total[1]
    return [mean, rest, ((square[0] - mean_total[0]) + low) - mean * rest]


def _parts_of_bfloat16(x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns x (8 bits) and x² (16 bits, in two parts of 8): sums of 65536 of these have 24 bits."""
    # Rounds again, because XLA may have kept the precision in which x was computed.
    x = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x, *_cut(x * x, 16)


def _parts_of_float16(x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns x (11 bits) and x² (22 bits, in parts of 12 and 10): sums of 4096 of these have 24 bits."""
    x = lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    return x, *_cut(x * x, 12)


def _parts_of_float32(x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns x in two parts of 12 bits, and x² in three.

    The parts of x² are 12 bits, then 12 on one grid for all squares of the same magnitude, then the rest.
    """
    high, low = _cut(x, 12)
    square, cross = high * high, 2 * high * low
    first, rest = _cut(square, 12)
    grid = 3 * _power_of_two(square)
    second = ((rest + cross) + grid) - grid
    return high, low, first, second, ((rest - second) + cross) + low * low


_PARTS: dict[str, Elementwise] = {
    "bfloat16": _parts_of_bfloat16,
    "float16": _parts_of_float16,
    "float32": _parts_of_float32,
}


# --- pairs of float32 ------------------------------------------------------------------------------


def _sum(a: jax.Array, b: jax.Array) -> _Pair:
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _product(a: jax.Array, b: jax.Array) -> _Pair:
    product = a * b
    (ah, al), (bh, bl) = _cut(a, 12), _cut(b, 12)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _cut(a: jax.Array, low_bits: int) -> _Pair:
    """Splits ``a`` into its value without the last ``low_bits`` bits of the mantissa, and the rest."""
    high = _with_bits(a, (0xFFFFFFFF << low_bits) & 0xFFFFFFFF)
    return high, a - high


def _power_of_two(a: jax.Array) -> jax.Array:
    """Returns 2 to the exponent of a positive ``a``, or 0 for 0."""
    return _with_bits(a, 0x7F800000)


def _with_bits(a: jax.Array, bits: int) -> jax.Array:
    kept = lax.bitcast_convert_type(a, jnp.uint32) & jnp.uint32(bits)
    return lax.bitcast_convert_type(kept, jnp.float32)
