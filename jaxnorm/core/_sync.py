"""Moments of all devices along a mapped axis, in one all-reduce."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._known import as_known
from ._pool import Moments, abs_square, moments_from_sums, sums_about
from ._residuals import keep

AxisName: TypeAlias = str | Sequence[str]
AxisIndexGroups: TypeAlias = Sequence[Sequence[int]]

_Sums = tuple[jax.Array, ...]
_OverDevices: TypeAlias = Callable[[_Sums], _Sums]


def pool_over_devices(
    m: Moments, axis_name: AxisName | None, axis_index_groups: AxisIndexGroups | None = None
) -> Moments:
    """`pool` along the mapped axes ``axis_name``: weighted by count, so shards may differ or be empty.

    One all-reduce forward, of three float64 numbers for each statistic, however many devices there are.
    Sums about zero are exact enough in float64 for any mean that float32 values can have, so that devices
    need not agree on a shift first. The derivative is that of the sums about the pooled mean: one
    all-reduce more, of two float32 numbers, in forward or in reverse mode.
    """
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError(
                f"axis_index_groups divides the devices of axis_name; got axis_index_groups="
                f"{axis_index_groups} and axis_name=None. Name the mapped axis, or leave the groups out."
            )
        return m
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    check_bound(names)
    over_devices = _over_devices(names, axis_index_groups)
    n = jnp.broadcast_to(m.count, m.mean.shape)
    count, shift, *sums = map(keep, lax.stop_gradient(_sums_about_their_mean(m, n, over_devices)))

    total, squares = as_known(over_devices, sums_about(shift, m, n), tuple(sums))
    return moments_from_sums(shift, total, squares, count)


def _sums_about_their_mean(m: Moments, n: jax.Array, over_devices: _OverDevices) -> _Sums:
    """Count of all devices, their mean s as rounded, Σ(x - s), which the rounding leaves, and Σ|x - s|²."""
    with jax.enable_x64(True):
        wide = jnp.complex128 if jnp.iscomplexobj(m.mean) else jnp.float64
        mean, var, n = m.mean.astype(wide), m.var.astype(jnp.float64), n.astype(jnp.float64)
        count, total, squares = over_devices(
            (n, n.astype(wide) * mean, n * (var + abs_square(mean)))
        )
        shift = (total / jnp.maximum(count, 1).astype(wide)).astype(m.mean.dtype)
        s = shift.astype(wide)
        # Σ|x - s|² = Σ|x|² - 2 Re(s* Σ(x - s)) - n|s|²
        about = total - count.astype(wide) * s
        squares = squares - 2 * (s.conj() * about).real - count * abs_square(s)
        real = m.var.dtype
        return count.astype(real), shift, about.astype(m.mean.dtype), squares.astype(real)


def _over_devices(names: tuple[str, ...], groups: AxisIndexGroups | None) -> _OverDevices:
    """Sums over the devices along ``names``, or over those of this device's group."""
    if groups is None:
        return lambda values: lax.psum(values, names)
    group_of = _group_of(groups, lax.axis_size(names))

    def summed(values: _Sums) -> _Sums:
        # A row for each group, of which each device fills its own: this works under every transform.
        own = jnp.asarray(group_of)[lax.axis_index(names)]
        mine = jnp.arange(len(groups), dtype=own.dtype) == own
        rows = (jnp.where(mine.reshape(-1, *[1] * a.ndim), a[None], 0) for a in values)
        return tuple(a[own] for a in lax.psum(tuple(rows), names))

    return summed


def is_bound(name: str) -> bool:
    """Whether ``name`` is a mapped axis here."""
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def check_bound(names: tuple[str, ...]) -> None:
    """Raises a ValueError if one of ``names`` is no mapped axis here."""
    unbound = [name for name in names if not is_bound(name)]
    if unbound:
        bound = ", ".join(map(repr, _bound_names())) or "none"
        raise ValueError(
            f"axis_name must name axes of vmap, pmap or shard_map around the call; got {unbound}, and "
            f"bound here: {bound}. Name one of these. Under jit, over a mesh or not, statistics are those "
            f"of the whole batch without a name: leave axis_name out."
        )


def _bound_names() -> tuple[str, ...]:
    try:  # jax has no public way to ask; this only makes a message better
        from jax._src.core import get_axis_env

        return tuple(map(str, get_axis_env().axis_sizes))
    except (ImportError, AttributeError):
        return ()


def _group_of(groups: AxisIndexGroups, size: int) -> Any:
    """The number of the group of each device.

    Raises:
        ValueError: the groups are not a partition of the devices.
    """
    devices = [device for group in groups for device in group]
    if sorted(devices) != list(range(size)):
        raise ValueError(
            f"axis_index_groups must have each device of axis_name once, 0 to {size - 1}; got {groups}."
        )
    group_of = np.zeros(size, np.int32)
    for i, group in enumerate(groups):
        group_of[list(group)] = i
    return group_of
