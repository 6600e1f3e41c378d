"""Moments of all devices along a mapped axis."""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax

from ._pool import Moments, moments_from_sums, sums_about
from ._residuals import keep

AxisName: TypeAlias = str | Sequence[str]
AxisIndexGroups: TypeAlias = Sequence[Sequence[int]]


def pool_over_devices(
    m: Moments, axis_name: AxisName | None, axis_index_groups: AxisIndexGroups | None = None
) -> Moments:
    """`pool` along the mapped axes ``axis_name``: weighted by count, so shards may differ or be empty.

    The common shift needs an all-reduce of its own, before that of the sums. It carries no derivative,
    so the backward pass has one.
    """
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError(
                f"axis_index_groups divides the devices of axis_name; got axis_index_groups="
                f"{axis_index_groups} and axis_name=None. Name the mapped axis, or leave the groups out."
            )
        return m
    names = tuple(axis_name) if isinstance(axis_name, list) else axis_name
    over_devices = partial(lax.psum, axis_name=names, axis_index_groups=axis_index_groups)
    n = jnp.broadcast_to(m.count, m.mean.shape)
    count, total = lax.stop_gradient(over_devices((n, n.astype(m.mean.dtype) * m.mean)))
    shift = keep(total / jnp.maximum(count, 1).astype(total.dtype))
    total, squares = over_devices(sums_about(shift, m, n))
    return moments_from_sums(shift, keep(total), keep(squares), keep(count))
