"""Group normalization (Wu and He, 2018, https://arxiv.org/abs/1803.08494)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._arguments import GROUPS
from ..core._axes import Axes, canonical_axes, one_axis
from ..core._moments import reduce_moments
from ..core._pool import Blocks, Moments, repeat_blocks
from ..core._public import public
from ._normalized_by import TakeMoments, normalized_by


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
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Group norm: normalizes groups of channels of each example by themselves.

        y = (x - μ) / sqrt(σ² + ε) · scale + bias

    μ and σ² are taken over ``reduction_axes`` and the neighbouring channels of a group. One group is
    layer norm over all but the batch; a channel a group is instance norm.

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        scale: γ, one a channel; None is 1.
        bias: β, likewise; None is 0.
        num_groups: number of groups; divides the number of channels.
        group_size: channels of a group, instead of ``num_groups`` (which is then None).
        feature_axes: the channel axis, one: -1 for channels last, 1 for channels first.
        reduction_axes: the axes to take statistics over, the channel axis included; None is all but
            the first.
        epsilon: ε, added to the variance; zero or positive. (PyTorch's default is 1e-5.)
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map over which positions are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: the groups do not divide the channels, both or neither of ``num_groups`` and
            ``group_size`` are given, ``reduction_axes`` lack the channel axis, or another argument
            cannot be; the message says what must hold and what to do.

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
    y, _ = normalized_by(
        moments_of_groups(
            x, channel, num_groups, group_size, reduction_axes, axis_name, axis_index_groups
        ),
        x,
        scale,
        bias,
        feature_axes=channel,
        epsilon=epsilon,
        mask=mask,
        dtype=dtype,
    )
    return y


def moments_of_groups(
    x: jax.Array,
    channel: int,
    num_groups: int | None,
    group_size: int | None,
    reduction_axes: Axes | None,
    axis_name: AxisName | None,
    axis_index_groups: AxisIndexGroups | None,
) -> TakeMoments:
    """The function that takes the moments of each group, for each of its channels."""
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
        # Sums of each channel, then of each group: only small arrays are grouped, never x.
        m = reduce_moments(x, positions, mask, axis_name, axis_index_groups, blocks, narrow=narrow)
        return repeat_blocks(m, blocks, x)

    return take_moments


def grouping(channels: int, num_groups: int | None, group_size: int | None) -> tuple[int, int]:
    """Number of groups, and channels of a group."""
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
