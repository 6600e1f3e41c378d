"""Sums over the devices along mapped axes, and checks of axis names and device groups."""

import numbers
from collections.abc import Hashable, Sequence
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._jax import axes_bound
from ._placement import match_sharding

AxisName: TypeAlias = str | Sequence[str]
AxisIndexGroups: TypeAlias = Sequence[Sequence[int]]


def axis_names(axis_name: AxisName | None) -> tuple[str, ...]:
    """Returns ``axis_name`` as a tuple of names. As in jax, a name may be any hashable value.

    Raises:
        ValueError: If a name is not hashable, or is a number, which jax's collectives read as a position.
    """
    if axis_name is None:
        return ()
    several = isinstance(axis_name, Sequence) and not isinstance(axis_name, str)
    names = tuple(axis_name) if several else (cast(str, axis_name),)
    if any(isinstance(name, numbers.Number) or not isinstance(name, Hashable) for name in names):
        raise ValueError(
            f"axis_name must be one or more names of mapped axes; got {axis_name!r}. jax's collectives read "
            f"a number as a position: name the axis with a string."
        )
    return names


def sum_over_devices(values: Sequence[jax.Array], names: tuple[str, ...]) -> list[jax.Array]:
    """Sums each of ``values``, all of one shape, over the devices along ``names``, if any are given.

    The values are stacked into one real array: XLA:GPU sums one array with a kernel of its own, but several
    with an NCCL collective.
    """
    if not names:
        return list(values)
    parts = [p for a in values for p in ((a.real, a.imag) if jnp.iscomplexobj(a) else (a,))]
    alike, _ = match_sharding(parts, parts[0].shape)
    sums = iter(lax.psum(jnp.stack(alike), names))
    return [
        lax.complex(next(sums), next(sums)) if jnp.iscomplexobj(a) else next(sums) for a in values
    ]


def is_bound(name: str) -> bool:
    """Returns whether ``name`` is a mapped axis in the current context."""
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def check_bound(names: tuple[str, ...]) -> None:
    """Checks that all ``names`` are mapped axes in the current context.

    Raises:
        ValueError: If one of them is not.
    """
    unbound = [name for name in names if not is_bound(name)]
    if unbound:
        bound = ", ".join(map(repr, axes_bound())) or "none"
        raise ValueError(
            f"axis_name must name axes of vmap, pmap or shard_map around the call; got {unbound}, but the "
            f"axes bound here are: {bound}. Use one of these. Under jit, with or without a mesh, statistics "
            f"always cover the whole batch: leave axis_name out."
        )


def group_of_device(groups: AxisIndexGroups, names: tuple[str, ...]) -> jax.Array:
    """Returns the index of the group that contains this device.

    Raises:
        ValueError: If the groups do not partition the devices.
    """
    size = lax.axis_size(names)
    devices = [device for group in groups for device in group]
    if sorted(devices) != list(range(size)):
        raise ValueError(
            f"axis_index_groups must contain each device of axis_name, 0 to {size - 1}, once; got {groups}."
        )
    group_of = np.zeros(size, np.int32)
    for i, group in enumerate(groups):
        group_of[list(group)] = i
    return jnp.asarray(group_of)[lax.axis_index(names)]
