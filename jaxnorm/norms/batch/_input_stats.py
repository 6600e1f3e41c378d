"""The statistics of `input_norm`: mean, variance and count of all values so far, in pairs of floats.

A float32 count stops growing at 2²⁴, and long before that, the change of a mean by one batch is lost in
rounding. So each statistic has a second float32, which holds what rounding left out of the first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import broadcasts_to
from ...core._placement import sharded_like
from ...core._pool import Moments, pool
from ...core._precision import arithmetic_dtype
from ...core._running import init_running_stats
from ...core._sync import pool_over_devices
from ...core.calling._explained import explained
from ...core.calling._serialized import serialized


@serialized
class InputStats(NamedTuple):
    """The mean, variance and count of all values so far, each of the feature shape.

    ``count`` is the number of unmasked values of each feature, or their total weight. ``remainder`` is
    what rounding left out of the three, stacked along a new first axis: ``count + remainder[2]`` is exact.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> _, stats = jn.input_norm(jnp.array([[1.0], [5.0]]), jn.init_input_norm(1))
        >>> print(stats.mean, stats.var, stats.count)
        [3.] [4.] [2.]
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # float32
    remainder: jax.Array


@explained
def init_input_norm(feature_shape: int | Sequence[int]) -> InputStats:
    """Returns statistics before the first value: mean 0, variance 1, count 0.

    Args:
        feature_shape: sizes of the feature axes, such as ``(17,)`` or ``17`` for 17 features.

    Returns:
        InputStats in float32.

    Raises:
        ValueError: If a size is not an integer of 0 or more.

    Example:
        >>> import jaxnorm as jn
        >>> stats = jn.init_input_norm(3)
        >>> print(stats.mean, stats.var, stats.count, stats.remainder.shape)
        [0. 0. 0.] [1. 1. 1.] [0. 0. 0.] (3, 3)
    """
    mean, var, _ = init_running_stats(feature_shape)
    return InputStats(mean, var, jnp.zeros_like(mean), jnp.zeros((3, *mean.shape), mean.dtype))


def with_batch(stats: InputStats, m: Moments) -> InputStats:
    """Returns the statistics of all values so far and a batch with the moments ``m``.

    The smaller of the two is added to the larger one, so that what is added is small:

        mean ← mean + w (mean' - mean)      var ← var + w (var' - var + (1 - w) |mean' - mean|²)

    w = count' / (count + count') is the share of the smaller one. The result is in float32 or wider.
    """
    dtype, shape = arithmetic_dtype(stats.mean), stats.mean.shape
    batch = m.mean, m.var, jnp.broadcast_to(m.count, m.mean.shape)
    new = jnp.stack([sharded_like(a.reshape(shape), stats.mean) for a in batch]).astype(dtype)
    old, rest = jnp.stack(stats[:3]).astype(dtype), stats.remainder.astype(dtype)
    is_larger = new[2] > old[2]
    large, small = jnp.where(is_larger, new, old), jnp.where(is_larger, old, new)
    of_large, of_small = jnp.where(is_larger, 0, rest), jnp.where(is_larger, rest, 0)
    count = large[2] + small[2]
    share = small[2] / jnp.where(count > 0, count, 1)
    by_mean, by_var, _ = (small - large) + (of_small - of_large)
    by_var = by_var + (1 - share) * by_mean**2
    added = jnp.stack([share * by_mean, share * by_var, small[2] + of_small[2]]) + of_large
    total = large + added
    # The rounding error of a sum (Knuth, "The Art of Computer Programming", volume 2, section 4.2.2).
    of_added = total - large
    remainder = (large - (total - of_added)) + (added - of_added)
    mean, var, count = total
    return InputStats(mean, var, count, sharded_like(remainder, rest))


def weighted_moments(
    x: jax.Array,
    weights: jax.Array,
    mask: jax.Array | None,
    axes: tuple[int, ...],
    axis_name: AxisName | None,
    axis_index_groups: AxisIndexGroups | None,
) -> Moments:
    """Returns the moments over ``axes`` of an upcast ``x``, counting each value ``weights`` times."""
    weights = jnp.broadcast_to(_checked(weights, x).astype(x.dtype), x.shape)
    weights = weights if mask is None else jnp.where(mask, weights, 0)
    m = pool(Moments(x, jnp.zeros_like(x), weights), axes)  # a value is the moments of itself
    return pool_over_devices(m, axis_name, axis_index_groups)


def _checked(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Returns ``weights`` with the rank of ``x``.

    Raises:
        ValueError: If they are not real, or do not broadcast to ``x``.
    """
    weights = jnp.asarray(weights)
    if jnp.iscomplexobj(weights) or not broadcasts_to(weights, x):
        raise ValueError(
            f"weights must be real and broadcast to x; got {weights.dtype.name} weights of shape "
            f"{weights.shape} for x of shape {x.shape}. Axes are aligned from the last: weights of the "
            f"examples in x need shape {x.shape[:1] + (1,) * (x.ndim - 1)}."
        )
    return weights.reshape((1,) * (x.ndim - weights.ndim) + weights.shape)
