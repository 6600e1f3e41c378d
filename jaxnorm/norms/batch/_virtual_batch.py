"""Virtual batches: statistics over a fixed number of examples, regardless of the batch size per device.

Virtual batches smaller than the batch of a device are the ghost batches of Hoffer et al. (2017,
https://arxiv.org/abs/1705.08741); larger ones pool statistics over groups of devices.
"""

import jax
from jax import lax

from ...core._all_reduce import AxisIndexGroups, AxisName, axis_names, check_bound
from ...core._moments import reduce_moments
from ...core._pool import Blocks, Moments, pool, repeat_blocks
from ...core._sync import pool_over_devices
from .._shared._normalized_by import normalized_by
from .._shared._prepare import Prepared


def normalized_in_virtual_batches(
    size: int,
    p: Prepared,
    reduced: tuple[int, ...],
    epsilon: float,
    axis_name: AxisName | None,
    activation: str | None,
) -> tuple[jax.Array, Moments]:
    """Normalizes each virtual batch by itself; returns the result and the moments of all examples."""

    def take_moments(x: jax.Array, mask: jax.Array | None, narrow: jax.Array) -> Moments:
        return _moments_of_virtual_batches(x, reduced, mask, size, axis_name, narrow)

    y, m = normalized_by(take_moments, p, epsilon=epsilon, activation=activation)
    return y, _moments_of_all(m, p.x.shape[0], size, axis_name)


def _moments_of_virtual_batches(
    x: jax.Array,
    reduced: tuple[int, ...],
    mask: jax.Array | None,
    size: int,
    axis_name: AxisName | None,
    narrow: jax.Array,
) -> Moments:
    """Returns the moments of the virtual batch of each example; size 1 along axis 0 if all share one."""
    examples = x.shape[0]  # may be symbolic
    groups = _groups_of_devices(examples, size, axis_name)
    if groups or size == examples:
        names = axis_name if groups else None
        return reduce_moments(x, reduced, mask, names, groups, narrow=narrow)
    # Sum each example, then each virtual batch: only small arrays are reshaped into groups, never x.
    blocks = Blocks(0, examples // size)
    positions = tuple(axis for axis in reduced if axis != 0)
    m = reduce_moments(x, positions, mask, None, None, blocks, narrow=narrow)
    return repeat_blocks(m, blocks, x)


def _moments_of_all(m: Moments, examples: int, size: int, axis_name: AxisName | None) -> Moments:
    """Returns the moments of all examples on all devices, given the moments of their virtual batches."""
    everyone = pool_over_devices(pool(m, 0), axis_name)
    # How often each virtual batch was counted: once per example, or once per device.
    repeats = m.mean.shape[0] * size // examples
    return everyone._replace(count=everyone.count / repeats)


def _groups_of_devices(
    examples: int, size: int, axis_name: AxisName | None
) -> AxisIndexGroups | None:
    """Groups consecutive devices that together hold ``size`` examples; None if they fit on one device.

    Raises:
        ValueError: If neither the examples nor the devices can be divided this way.
    """
    if examples % size == 0 and size <= examples:
        return None
    if axis_name is not None and size % examples == 0:
        names = axis_names(axis_name)
        check_bound(names)
        together, devices = size // examples, lax.axis_size(names)
        if devices % together == 0:
            return [[*range(i, i + together)] for i in range(0, devices, together)]
    over = "" if axis_name is None else f" on each of the devices of {axis_name!r}"
    raise ValueError(
        f"virtual_batch_size must divide the {examples} examples of x or, with axis_name, be the number of "
        f"examples on equal groups of devices; got virtual_batch_size={size} for {examples} examples{over}. "
        f"Pad a ragged batch, and mask the padding."
    )


def check_virtual_batch_size(
    size: int, features: tuple[int, ...], groups: AxisIndexGroups | None
) -> None:
    """Validates the arguments that do not depend on the number of examples.

    Raises:
        ValueError: If axis 0 is a feature axis, or if ``groups`` is given too.
    """
    if 0 in features:
        raise ValueError(
            f"virtual_batch_size counts examples along axis 0 of x, which must not be a feature axis; got "
            f"feature_axes={features}. Put the examples first."
        )
    if groups is not None:
        raise ValueError(
            f"virtual_batch_size must not be combined with axis_index_groups; got virtual_batch_size={size} "
            f"and axis_index_groups={groups}. Leave one of them out."
        )
