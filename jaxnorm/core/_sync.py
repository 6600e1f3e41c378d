"""Moments of all devices along mapped axes."""

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
    """`pool` along the mapped axes ``axis_name``: weighted by count, so shards may differ or be empty.

    One all-reduce forward, of a few numbers for each statistic, however many devices there are. The
    derivative is that of the sums about the pooled mean: one all-reduce more, of two numbers, in forward or
    in reverse mode.
    """
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError(
                f"axis_index_groups divides the devices of axis_name; got axis_index_groups="
                f"{axis_index_groups} and axis_name=None. Name the mapped axis, or leave the groups out."
            )
        return m
    names = axis_names(axis_name)
    check_bound(names)
    m = m._replace(count=jnp.broadcast_to(m.count, m.mean.shape))
    if axis_index_groups is None:
        return _pooled(m, names)
    # A row for each group, of which each device fills its own: this works under every transform.
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


# --- the sums of all devices: their count, a shift, Σ(x - shift), and Σ|x - shift|² ---------------------


def _in_float64(m: Moments, names: tuple[str, ...]) -> _Arrays:
    """Of float32 values: sums about zero are exact enough in float64 whatever their mean."""
    with jax.enable_x64(True):
        wide = jnp.complex128 if jnp.iscomplexobj(m.mean) else jnp.float64
        mean, var, n = (
            a.astype(t) for a, t in zip(m, (wide, jnp.float64, jnp.float64), strict=True)
        )
        count, total, squares = sum_over_devices(
            (n, n.astype(wide) * mean, n * (var + abs_square(mean))), names
        )
        shift = (total / jnp.maximum(count, 1).astype(wide)).astype(m.mean.dtype)
        s = shift.astype(wide)
        # Σ|x - s|² = Σ|x|² - 2 Re(s* Σ(x - s)) - n|s|²
        about = total - count.astype(wide) * s
        squares = squares - 2 * (s.conj() * about).real - count * abs_square(s)
        real = m.var.dtype
        return [count.astype(real), shift, about.astype(m.mean.dtype), squares.astype(real)]


def _about_their_mean(m: Moments, names: tuple[str, ...]) -> _Arrays:
    """By two all-reduces, the second of sums about the mean that the first found."""
    count, total = sum_over_devices((m.count, m.count.astype(m.mean.dtype) * m.mean), names)
    shift = divide_by_count(total, count)
    return [count, shift, *sum_over_devices(sums_about(shift, m, m.count), names)]


_FAR = 1000  # |mean|² / var, up to which float32 sums about zero are exact to 1000 · 2⁻²⁴


def _about_zero_if_near(m: Moments, names: tuple[str, ...]) -> _Arrays:
    """Sums about zero, and again, about the mean, where a device is far from zero: for a TPU.

    It has no float64: XLA makes two float32 of one, and of their all-reduce a gather that grows with the
    devices. If no device is far, all together are not. How many are far is an exact sum: all go one way.
    """
    square = abs_square(m.mean)
    far = (square != 0) & ~(square < _FAR * m.var)  # the mean of nothing is 0
    zero = jnp.zeros_like(m.mean)
    count, total, squares, devices = sum_over_devices(
        (m.count, *sums_about(zero, m, m.count), far.astype(m.var.dtype)), names
    )
    n = jnp.maximum(count, 1)
    shift = total / n.astype(total.dtype)
    about_mean = jnp.maximum(squares - n * abs_square(shift), 0)
    sums = lax.cond(
        jnp.any(devices > 0),
        lambda: sum_over_devices(sums_about(shift, m, m.count), names),
        lambda: [jnp.zeros_like(shift), about_mean],
    )
    return [count, shift, *sums]


def _several_groups(names: tuple[str, ...]) -> bool:
    """Whether devices that do not pool run one program: these would not go one way."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape[axis] > 1 for axis in mesh.manual_axes if axis not in names)
