"""Pools moments over the devices along mapped axes."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ._all_reduce import (
    AxisIndexGroups,
    AxisName,
    axis_names,
    check_bound,
    group_of_device,
    sum_over_devices,
)
from ._derivative_of import with_derivative_of
from ._pool import Moments, abs_square, divide_by_count, moments_from_sums, sums_about
from ._residuals import saveable

_Arrays: TypeAlias = list[jax.Array]


def pool_over_devices(
    m: Moments, axis_name: AxisName | None, axis_index_groups: AxisIndexGroups | None = None
) -> Moments:
    """Pools ``m`` along the mapped axes ``axis_name``, weighted by count: shards may differ or be empty.

    The forward pass takes one all-reduce of a few numbers per statistic, for any number of devices; a second
    one for float64 statistics, and on a TPU where it is needed. The derivative is that of the sums about the
    pooled mean: one more all-reduce, of two numbers, in forward or reverse mode.
    """
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError(
                f"axis_index_groups must come with axis_name, whose devices it groups; got axis_index_groups="
                f"{axis_index_groups} and axis_name=None. Name the mapped axis, or leave out the groups."
            )
        return m
    names = axis_names(axis_name)
    check_bound(names)
    m = m._replace(count=jnp.broadcast_to(m.count, m.mean.shape))
    if axis_index_groups is None:
        return _pooled(m, names)
    # One row per group; each device fills the row of its own group. This works under every transform.
    own = group_of_device(axis_index_groups, names)
    mine = jnp.arange(len(axis_index_groups), dtype=own.dtype) == own
    mean, var, count = (jnp.where(mine.reshape(-1, *[1] * a.ndim), a[None], 0) for a in m)
    return Moments(*(a[own] for a in _pooled(Moments(mean, var, count), names)))


def _pooled(m: Moments, names: tuple[str, ...]) -> Moments:
    still, several = lax.stop_gradient(m), _several_groups(names)

    def in_float32(m: Moments) -> _Arrays:
        return (_about_their_mean if several else _about_zero_if_near)(m, names)

    if m.var.dtype == jnp.float64:
        found = _about_their_mean(still, names)
    else:
        found = lax.platform_dependent(
            still, tpu=in_float32, default=lambda m: _in_float64(m, names)
        )
    count, shift, *sums = map(saveable, found)
    total, squares = with_derivative_of(sums, sums_about(shift, m, m.count), names)
    return moments_from_sums(shift, total, squares, count)


# --- sums over all devices: the count, a shift, Σ(x - shift) and Σ|x - shift|² --------------------------


def _in_float64(m: Moments, names: tuple[str, ...]) -> _Arrays:
    """Sums float32 moments in float64, where sums about zero are accurate enough for any mean."""
    with jax.enable_x64(True):
        wide = jnp.complex128 if jnp.iscomplexobj(m.mean) else jnp.float64
        mean, var, n = (
            a.astype(t) for a, t in zip(m, (wide, jnp.float64, jnp.float64), strict=True)
        )
        count, total, squares = sum_over_devices(
            (n, n.astype(wide) * mean, n * (var + abs_square(mean))), names
        )
        shift = divide_by_count(total, count).astype(m.mean.dtype)
        s = shift.astype(wide)
        # Σ|x - s|² = Σ|x|² - 2 Re(s* Σ(x - s)) - n|s|²
        about = total - count.astype(wide) * s
        squares = squares - 2 * (s.conj() * about).real - count * abs_square(s)
        real = m.var.dtype
        return [count.astype(real), shift, about.astype(m.mean.dtype), squares.astype(real)]


def _about_their_mean(m: Moments, names: tuple[str, ...]) -> _Arrays:
    """Takes two all-reduces: the first finds the mean, the second sums about it."""
    count, total = sum_over_devices((m.count, m.count.astype(m.mean.dtype) * m.mean), names)
    shift = divide_by_count(total, count)
    return [count, shift, *sum_over_devices(sums_about(shift, m, m.count), names)]


_FAR = 1000  # up to this |mean|² / var, float32 sums about zero are accurate to 1000 · 2⁻²⁴


def _about_zero_if_near(m: Moments, names: tuple[str, ...]) -> _Arrays:
    """Sums about zero, and again about the mean if the mean of any device is far from zero. For TPUs.

    TPUs have no float64: XLA emulates it by two float32, and turns their all-reduce into a gather that grows
    with the number of devices. If no device's mean is far from zero, neither is the pooled mean. The number
    of devices that are far is an exact sum, so all devices take the same branch.
    """
    square = abs_square(m.mean)
    far = (square != 0) & ~(square < _FAR * m.var)  # an empty shard has mean 0
    zero = jnp.zeros_like(m.mean)
    count, total, squares, devices = sum_over_devices(
        (m.count, *sums_about(zero, m, m.count), far.astype(m.var.dtype)), names
    )
    shift = divide_by_count(total, count)
    about_mean = jnp.maximum(squares - count * abs_square(shift), 0)
    sums = lax.cond(
        jnp.any(devices > 0),
        lambda: sum_over_devices(sums_about(shift, m, m.count), names),
        lambda: [jnp.zeros_like(shift), about_mean],
    )
    return [count, shift, *sums]


def _several_groups(names: tuple[str, ...]) -> bool:
    """Returns whether devices that do not pool share the program: they may not all take the same branch."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape[axis] > 1 for axis in mesh.manual_axes if axis not in names)
