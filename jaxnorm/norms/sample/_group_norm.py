"""Group normalization (Wu and He, 2018, https://arxiv.org/abs/1803.08494)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, canonical_axes, one_axis
from ...core._moments import reduce_moments
from ...core._pool import Blocks, Moments, repeat_blocks
from ...core.calling._arguments import GROUPS
from ...core.calling._public import public
from .._shared._normalized_by import TakeMoments, normalized_by
from .._shared._prepare import prepare


@public
def group_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axes: Axes = -1,
    reduction_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    activation: str | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Group norm: normalizes each group of channels of each example independently.

        y = activation((x - μ) / sqrt(σ² + ε) · scale + bias)

    μ and σ² are computed over ``reduction_axes``, separately for each group of consecutive channels. One
    group is layer norm over all axes except the batch axis; one channel per group is instance norm.

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        num_groups: number of groups; must divide the number of channels. (``math.gcd(32, channels)`` is the
            largest power of 2 up to 32 that does.)
        group_size: channels per group, as an alternative to ``num_groups``, which must then be None.
        feature_axes: the channel axis (exactly one): -1 for channels last, 1 for channels first.
        reduction_axes: axes to compute the statistics over, including the channel axis; None means all axes
            except the first.
        epsilon: ε, added to the variance; zero or positive. (PyTorch's default is 1e-5.)
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the positions are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` from ``jax.nn``, computed in the same pass;
            None applies no activation.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If the groups do not divide the channels evenly, if both or neither of ``num_groups`` and
            ``group_size`` are given, if ``reduction_axes`` does not include the channel axis, or if another
            argument is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 32, 32, 6))
        >>> y = jn.group_norm(x, num_groups=3)
        >>> print(y.reshape(2, 32, 32, 3, 2).std((1, 2, 4)).round(3))
        [[1. 1. 1.]
         [1. 1. 1.]]
    """
    x = jnp.asarray(x)
    channel = one_axis(feature_axes, x.ndim, "feature_axes", "the channels")
    take_moments = moments_of_groups(
        x, channel, num_groups, group_size, reduction_axes, axis_name, axis_index_groups
    )
    given = {"scale": scale, "bias": bias}
    p = prepare(x, given, feature_axes=channel, mask=mask, dtype=dtype, activation=activation)
    return normalized_by(take_moments, p, epsilon=epsilon, activation=activation)[0]


def moments_of_groups(
    x: jax.Array,
    channel: int,
    num_groups: int | None,
    group_size: int | None,
    reduction_axes: Axes | None,
    axis_name: AxisName | None,
    axis_index_groups: AxisIndexGroups | None,
) -> TakeMoments:
    """Returns a function that computes the moments of each group, repeated for each of its channels."""
    groups, _ = grouping(x.shape[channel], num_groups, group_size)
    all_but_batch = sorted({*range(1, x.ndim), channel})
    reduced = canonical_axes(
        all_but_batch if reduction_axes is None else reduction_axes, x.ndim, "reduction_axes"
    )
    if channel not in reduced:
        raise ValueError(
            "The reduction axes must include the final dimension as this is assumed to be the feature "
            f"axis. Got reduction_axes={reduction_axes!r} with the channel axis {channel}; add it."
        )
    positions = tuple(i for i in reduced if i != channel)
    blocks = Blocks(channel, groups)

    def take_moments(x: jax.Array, mask: jax.Array | None, narrow: jax.Array) -> Moments:
        # Sum each channel, then each group: only small arrays are reshaped into groups, never x.
        m = reduce_moments(x, positions, mask, axis_name, axis_index_groups, blocks, narrow=narrow)
        return repeat_blocks(m, blocks, x)

    return take_moments


def grouping(channels: int, num_groups: int | None, group_size: int | None) -> tuple[int, int]:
    """Returns the number of groups and the number of channels per group."""
    GROUPS.check("num_groups", num_groups)
    GROUPS.check("group_size", group_size)
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            "Either `num_groups` or `group_size` should be specified. If `group_size` is to be "
            "specified, pass `num_groups=None` as argument to override the default `num_groups` value "
            f"of 32. Got num_groups={num_groups}, group_size={group_size}."
        )
    if group_size is not None:
        if group_size <= 0 or channels % group_size:
            raise ValueError(
                f"Number of channels ({channels}) is not multiple of the group size ({group_size}). "
                f"Choose a divisor of {channels}."
            )
        return channels // group_size, group_size
    assert num_groups is not None
    if num_groups <= 0 or channels % num_groups:
        raise ValueError(
            f"Number of groups ({num_groups}) does not divide the number of channels ({channels}). "
            f"Choose a divisor of {channels}, or give group_size."
        )
    return num_groups, channels // num_groups
