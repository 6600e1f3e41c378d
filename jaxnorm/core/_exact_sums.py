"""Sums about the mean from plain sums of x and x², without a shift: of parts that float32 adds up exactly.

XLA:TPU takes any number of plain sums of functions of x in the matmul or convolution that makes x, and no
sum about a shift that is read of x. Plain sums of x and x² lose what their difference needs; so x and x² are
cut into parts of so few bits that the partial sums of each have all their bits in float32. The rest is
arithmetic on small arrays in pairs of float32 (Dekker, "A floating-point technique for extending the
available precision", 1971).

The variance is as exact as that from two passes, up to mean/std 1e4 in float32. x² must not overflow.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ._elementwise import Elementwise
from ._reduce import sum_elementwise

_Pair: TypeAlias = tuple[jax.Array, jax.Array]  # a value as rounded, and what rounding took away


def most_elements(dtype: jnp.dtype) -> int:
    """How many elements of x in ``dtype`` have exact sums; 0 if none have."""
    return {"bfloat16": 65536, "float16": 4096, "float32": 4096}.get(dtype.name, 0)


def exact_sums(
    x: jax.Array,
    dtype: jnp.dtype,
    mask: jax.Array | None,
    count: jax.Array,
    axes: tuple[int, ...],
) -> list[jax.Array]:
    """The mean as rounded, Σ(x - mean) and Σ|x - mean|² of x in float32, which was widened from ``dtype``."""
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
    """X of 8 bits and x² of 16, as two of 8: 65536 of these have 24."""
    x = lax.reduce_precision(
        x, exponent_bits=8, mantissa_bits=7
    )  # or x may be as its producer made it
    return x, *_cut(x * x, 16)


def _parts_of_float16(x: jax.Array) -> tuple[jax.Array, ...]:
    """X of 11 bits and x² of 22, as 12 and 10: 4096 of these have 24."""
    x = lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    return x, *_cut(x * x, 12)


def _parts_of_float32(x: jax.Array) -> tuple[jax.Array, ...]:
    """X as two of 12 bits, x² as 12, then 12 on one grid for all squares of its size, then the rest."""
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
    """``a`` as what is left without the ``low_bits`` of its mantissa, and as those."""
    high = _with_bits(a, (0xFFFFFFFF << low_bits) & 0xFFFFFFFF)
    return high, a - high


def _power_of_two(a: jax.Array) -> jax.Array:
    """2 to the exponent of ``a``, which is positive; 0 of 0."""
    return _with_bits(a, 0x7F800000)


def _with_bits(a: jax.Array, bits: int) -> jax.Array:
    kept = lax.bitcast_convert_type(a, jnp.uint32) & jnp.uint32(bits)
    return lax.bitcast_convert_type(kept, jnp.float32)
