"""Sums over devices: those along mapped axes, or those of one group of them."""

import numbers
from collections.abc import Hashable, Sequence
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._jax import axes_bound

AxisName: TypeAlias = str | Sequence[str]
AxisIndexGroups: TypeAlias = Sequence[Sequence[int]]


def axis_names(axis_name: AxisName | None) -> tuple[str, ...]:
    """``axis_name`` as a tuple of names, which may be anything that has a hash, as in jax.

    Raises:
        ValueError: it has none; or it is a number, which a collective of jax takes for a position.
    """
    if axis_name is None:
        return ()
    several = isinstance(axis_name, Sequence) and not isinstance(axis_name, str)
    names = tuple(axis_name) if several else (cast(str, axis_name),)
    if any(isinstance(name, numbers.Number) or not isinstance(name, Hashable) for name in names):
        raise ValueError(
            f"axis_name must be the name of a mapped axis, or several; got {axis_name!r}. Collectives of jax "
            f"take a number for a position: give the axis a string for its name."
        )
    return names


def sum_over_devices(values: Sequence[jax.Array], names: tuple[str, ...]) -> list[jax.Array]:
    """The sums of ``values``, all of one shape, over the devices along ``names``, if there are any.

    By one real array: of several, XLA:GPU makes a collective of NCCL's, of one a kernel of its own.
    """
    if not names:
        return list(values)
    parts = [p for a in values for p in ((a.real, a.imag) if jnp.iscomplexobj(a) else (a,))]
    sums = iter(lax.psum(jnp.stack(parts), names))
    return [
        lax.complex(next(sums), next(sums)) if jnp.iscomplexobj(a) else next(sums) for a in values
    ]


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
        bound = ", ".join(map(repr, axes_bound())) or "none"
        raise ValueError(
            f"axis_name must name axes of vmap, pmap or shard_map around the call; got {unbound}, and "
            f"bound here: {bound}. Name one of these. Under jit, over a mesh or not, statistics are those "
            f"of the whole batch without a name: leave axis_name out."
        )


def group_of_device(groups: AxisIndexGroups, names: tuple[str, ...]) -> jax.Array:
    """The number of the group that this device is in.

    Raises:
        ValueError: the groups are not a partition of the devices.
    """
    size = lax.axis_size(names)
    devices = [device for group in groups for device in group]
    if sorted(devices) != list(range(size)):
        raise ValueError(
            f"axis_index_groups must have each device of axis_name once, 0 to {size - 1}; got {groups}."
        )
    group_of = np.zeros(size, np.int32)
    for i, group in enumerate(groups):
        group_of[list(group)] = i
    return jnp.asarray(group_of)[lax.axis_index(names)]
