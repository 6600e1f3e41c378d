"""Sums about a guess of the mean, and again about the mean if the guess is far off. For XLA:TPU.

A guess that is known beforehand lets XLA take the sums in the convolution or matmul that makes x. The second
sums are in a branch, which is seldom taken once the running statistics are near.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ._axes import is_static
from ._pool import abs_square
from ._shift import about, count, mean_of

# Between the sizes that were compiled. On a v5e and a v6e, whose own memory has 128 MiB, XLA keeps an x of
# 49 MiB there if the branch reads a copy; at 98 MiB, the copy only costs (see benchmarks/README.md).
_MOST_BYTES_ON_CHIP = 2**26


def about_guess(
    x: jax.Array,
    narrow: jax.Array,
    mask: jax.Array | None,
    guess: jax.Array,
    axes: tuple[int, ...],
    devices: int,
) -> list[jax.Array]:
    """Returns the shift, Σ(x - shift) and Σ|x - shift|² over ``axes``.

    The shift is the guess, or the mean if the guess is more than a standard deviation off. The compiler
    partitions the program over ``devices``.
    """
    guess = jnp.where(jnp.isfinite(guess), guess, 0).astype(x.dtype)
    total, squares = about(guess, x, mask, axes, None)
    n = jnp.maximum(count(x, mask, axes), 1)
    distance = abs_square(total / n)
    # If all values are equal, allow for float32's resolution: a running mean stops that far from the mean.
    least = abs_square(guess * 2**-18)
    near = jnp.all(distance <= jnp.maximum(squares / n - distance, least))
    sums = [jnp.broadcast_to(guess, total.shape), total, squares]
    again = _copied(x, narrow, guess * 0) if _fits_on_chip(narrow, devices) else narrow
    # Upcast again in the branch: XLA would store the upcast x if the branch took it as an operand.
    return lax.cond(near, lambda: sums, lambda: two_passes(again.astype(x.dtype), mask, axes))


def two_passes(x: jax.Array, mask: jax.Array | None, axes: tuple[int, ...]) -> list[jax.Array]:
    """Returns the mean, Σ(x - mean) and Σ|x - mean|² over ``axes``."""
    mean = mean_of(x, mask, axes)
    return [mean, *about(mean, x, mask, axes, None)]


def _fits_on_chip(x: jax.Array, devices: int) -> bool:
    """Returns whether a chip may keep its part of ``x`` in its own memory, if x is divided evenly."""
    return is_static(x.shape) and x.size * x.dtype.itemsize <= devices * _MOST_BYTES_ON_CHIP


def _copied(x: jax.Array, narrow: jax.Array, zero: jax.Array) -> jax.Array:
    """Returns a copy of ``narrow`` for a branch; XLA keeps no operand of a branch in the chip's own memory.

    The copy is written where x is computed. If XLA knew that ``zero`` is 0, it would take the two for one.
    """
    return lax.optimization_barrier((x - zero).astype(narrow.dtype))
