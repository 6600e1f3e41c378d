"""Every public function with options, in NumPy at float64, with the same arguments and defaults.

The code follows the formulas of the docstrings as directly as possible. Each function returns the leaves
of the public function's result, in the same order. Options for devices and dtypes are left out.
"""

import math
from typing import Any

import numpy as np

from tests import oracle
from tests.oracle import Array, complement, typical_moments, wide

Leaves = tuple[Any, ...]


def _axes(axes: Any, ndim: int) -> tuple[int, ...]:
    return complement(complement(axes, ndim), ndim)


def _along(p: Array, x: Array, axes: Any) -> Any:
    """Reshapes ``p``, which has the shape of the feature axes, to broadcast against ``x``."""
    kept = _axes(axes, x.ndim)
    return np.reshape(p, [n if i in kept else 1 for i, n in enumerate(x.shape)])


def _affine(y: Array, scale: Array, bias: Array, axes: Any) -> Any:
    y = y if scale is None else y * _along(scale, y, axes)
    return y if bias is None else y + _along(bias, y, axes)


def _standardized(x: Array, m: oracle.Moments, epsilon: float) -> Any:
    return (x - m.mean) / np.sqrt(m.var + epsilon)


def _mean_square(x: Array, axes: Any, mask: Array) -> Any:
    m = oracle.moments(x, axes, mask)
    return np.where(m.count > 0, m.var + m.mean**2, 1)


def _positions(x: Array, feature_axes: Any) -> tuple[int, ...]:
    return tuple(i for i in complement(feature_axes, x.ndim) if i != 0)


def _activated(y: Array, activation: str | None) -> Any:
    if activation == "relu":
        return np.maximum(y, 0)
    if activation == "leaky_relu":
        return np.where(y >= 0, y, 0.01 * y)
    if activation == "silu":
        return y / (1 + np.exp(-y))
    if activation == "gelu":  # the tanh form, as in jax.nn.gelu
        return y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y


# --- statistics ----------------------------------------------------------------------------------


def moments(x: Array, reduction_axes: Any, *, mask: Array = None) -> Leaves:
    """Mean, variance, count."""
    return oracle.moments(x, reduction_axes, mask)


def update_running_stats(
    stats: Any, moments: Any, *, momentum: float | None = 0.99, unbiased: bool = False
) -> Leaves:
    """The unbiased variance of a single value is its biased variance."""
    mean, var, seen = stats
    count = np.broadcast_to(moments.count, np.shape(moments.mean)).reshape(np.shape(mean))
    new_mean, new_var = (np.reshape(a, np.shape(mean)) for a in moments[:2])
    if unbiased:
        new_var = new_var * np.where(count == 1, 1, count / np.where(count == 1, 1, count - 1))
    old = seen / (seen + 1) if momentum is None else momentum
    moved = tuple(
        np.where(count > 0, old * a + (1 - old) * b, a)
        for a, b in ((mean, new_mean), (var, new_var))
    )
    return moved if seen is None else (*moved, seen + (count > 0))


# --- the batch -----------------------------------------------------------------------------------


def batch_norm(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    momentum: float | None = 0.99,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    mask: Array = None,
    virtual_batch_size: int | None = None,
    activation: str | None = None,
    residual: Array = None,
    save_as: Any = None,
) -> Leaves:
    """Virtual batches are normalized separately; ``save_as`` does not change any value."""
    reduced, counted = complement(feature_axes, x.ndim), np.broadcast_to(_or_all(mask), x.shape)
    size = virtual_batch_size or len(x)
    parts = [slice(i, i + size) for i in range(0, len(x), size)]
    y = np.concatenate(
        [_standardized(x[p], oracle.moments(x[p], reduced, counted[p]), epsilon) for p in parts]
    )
    y = _affine(y, scale, bias, feature_axes) + (0 if residual is None else residual)
    m = oracle.moments(x, reduced, mask)
    moved = update_running_stats(stats, m, momentum=momentum, unbiased=unbiased)
    return (_activated(y, activation), *moved)


def _or_all(mask: Array) -> Any:
    return True if mask is None else mask


def batch_norm_inference(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
    activation: str | None = None,
    residual: Array = None,
) -> Leaves:
    """A masked NaN reads as the mean."""
    mean, var = (_along(a, x, feature_axes) for a in stats[:2])
    x = np.where(_or_all(mask) | np.isfinite(x), x, mean)
    y = _affine((x - mean) / np.sqrt(var + epsilon), scale, bias, feature_axes)
    return (_activated(y + (0 if residual is None else residual), activation),)


def batch_norm_adapted(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    running_share: float,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """A mixture of the running statistics and the batch's."""
    m = oracle.moments(x, complement(feature_axes, x.ndim), mask)
    mean, var = (
        running_share * _along(old, x, feature_axes) + (1 - running_share) * new
        for old, new in zip(stats[:2], m[:2], strict=True)
    )
    return (_affine((x - mean) / np.sqrt(var + epsilon), scale, bias, feature_axes),)


def batch_renorm(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    rmax: float = 3.0,
    dmax: float = 5.0,
    form: str = "paper",
    feature_axes: Any = -1,
    momentum: float | None = 0.99,
    epsilon: float = 1e-3,
    mask: Array = None,
) -> Leaves:
    """The running average is over standard deviations, or in CrossQ's form over variances."""
    m = oracle.moments(x, complement(feature_axes, x.ndim), mask)
    std, old_std = np.sqrt(m.var + epsilon), np.sqrt(stats[1] + epsilon)
    wide_old = _along(old_std, x, feature_axes)
    r = np.clip(std / wide_old, 1 / rmax, rmax)
    d = np.clip((m.mean - _along(stats[0], x, feature_axes)) / wide_old, -dmax, dmax)
    if form == "crossq":
        mean, var = m.mean - d * np.sqrt(m.var) / r, m.var / r**2
        y = _affine((x - mean) / np.sqrt(var + epsilon), scale, bias, feature_axes)
        return (y, *update_running_stats(stats, m, momentum=momentum))
    y = _affine((x - m.mean) / std * r + d, scale, bias, feature_axes)
    mean, moved_std, *seen = update_running_stats(
        (stats[0], old_std, stats[2]), oracle.Moments(m.mean, std, m.count), momentum=momentum
    )
    return (y, mean, moved_std**2 - epsilon, *seen)


def mean_only_batch_norm(
    x: Array,
    stats: Any,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    momentum: float | None = 0.99,
    mask: Array = None,
) -> Leaves:
    """Salimans and Kingma (2016), section 4."""
    m = oracle.moments(x, complement(feature_axes, x.ndim), mask)
    y = _affine(x - m.mean, None, bias, feature_axes)
    return (y, *update_running_stats(stats, m, momentum=momentum))


def mean_only_batch_norm_inference(
    x: Array, stats: Any, bias: Array = None, *, feature_axes: Any = -1, mask: Array = None
) -> Leaves:
    """Subtracts the running mean; a masked NaN reads as it."""
    mean = _along(stats[0], x, feature_axes)
    x = np.where(_or_all(mask) | np.isfinite(x), x, mean)
    return (_affine(x - mean, None, bias, feature_axes),)


def batch_renorm_inference(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-3,
    mask: Array = None,
) -> Leaves:
    """Batch norm with the running statistics; a masked NaN reads as the mean."""
    options = {"feature_axes": feature_axes, "epsilon": epsilon, "mask": mask}
    return batch_norm_inference(x, stats, scale, bias, **options)


def input_norm(
    x: Array,
    stats: Any,
    *,
    weights: Array = None,
    max_abs: float | None = None,
    feature_axes: Any = -1,
    epsilon: float = 1e-8,
    mask: Array = None,
) -> Leaves:
    """The statistics of the values so far, and of x repeated ``weights`` times, in exact arithmetic."""
    reduced = complement(feature_axes, x.ndim)
    counts = np.broadcast_to(1 if weights is None else weights, x.shape) * _or_all(mask)
    w = [stats[2], counts.sum(reduced)]
    mean_of_x = (counts * x).sum(reduced) / w[1]
    var_of_x = (counts * (x - _along(mean_of_x, x, feature_axes)) ** 2).sum(reduced) / w[1]
    mean = (w[0] * stats[0] + w[1] * mean_of_x) / sum(w)
    var = w[0] * (stats[1] + (stats[0] - mean) ** 2) + w[1] * (var_of_x + (mean_of_x - mean) ** 2)
    updated = mean, var / sum(w), sum(w)
    options: Any = {"max_abs": max_abs, "feature_axes": feature_axes, "epsilon": epsilon}
    return (*input_norm_inference(x, updated, **options, mask=mask), *updated)


def input_norm_inference(
    x: Array,
    stats: Any,
    *,
    max_abs: float | None = None,
    feature_axes: Any = -1,
    epsilon: float = 1e-8,
    mask: Array = None,
) -> Leaves:
    """A masked NaN reads as the mean."""
    limit = np.inf if max_abs is None else max_abs
    mean, var = (_along(a, x, feature_axes) for a in stats[:2])
    x = np.where(_or_all(mask) | np.isfinite(x), x, mean)
    return (np.clip((x - mean) / np.sqrt(var + epsilon), -limit, limit),)


def input_norm_inverse(
    y: Array, stats: Any, *, feature_axes: Any = -1, epsilon: float = 1e-8
) -> Leaves:
    """The inverse without a limit."""
    mean, var = (_along(a, y, feature_axes) for a in stats[:2])
    return (y * np.sqrt(var + epsilon) + mean,)


def evo_norm_b0(
    x: Array,
    stats: Any,
    v: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    momentum: float | None = 0.9,
    epsilon: float = 1e-3,
    unbiased: bool = False,
    mask: Array = None,
) -> Leaves:
    """Liu et al. (2020)."""
    batch = oracle.moments(x, complement(feature_axes, x.ndim), mask)
    y = _evo_norm_b0(x, batch.var, v, scale, bias, feature_axes, epsilon, mask)
    return (y, *update_running_stats(stats, batch, momentum=momentum, unbiased=unbiased))


def evo_norm_b0_inference(
    x: Array,
    stats: Any,
    v: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-3,
    mask: Array = None,
) -> Leaves:
    """The running variance replaces that of the batch."""
    var = _along(stats[1], x, feature_axes)
    return (_evo_norm_b0(x, var, v, scale, bias, feature_axes, epsilon, mask),)


def _evo_norm_b0(
    x: Array, var: Array, v: Array, scale: Array, bias: Array, axes: Any, epsilon: float, mask: Any
) -> Any:
    instance = oracle.moments(x, _positions(x, axes), mask)
    line = _along(v, x, axes) * x + np.sqrt(instance.var + epsilon)
    return _over_larger(x, var, line, scale, bias, axes, epsilon)


def evo_norm_b1(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    momentum: float | None = 0.9,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    mask: Array = None,
) -> Leaves:
    """Liu et al. (2020)."""
    batch = oracle.moments(x, complement(feature_axes, x.ndim), mask)
    line = (x + 1) * np.sqrt(_mean_square(x, _positions(x, feature_axes), mask) + epsilon)
    y = _over_larger(x, batch.var, line, scale, bias, feature_axes, epsilon)
    return (y, *update_running_stats(stats, batch, momentum=momentum, unbiased=unbiased))


def evo_norm_b1_inference(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """The running variance replaces that of the batch."""
    line = (x + 1) * np.sqrt(_mean_square(x, _positions(x, feature_axes), mask) + epsilon)
    var = _along(stats[1], x, feature_axes)
    return (_over_larger(x, var, line, scale, bias, feature_axes, epsilon),)


def evo_norm_b2(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    momentum: float | None = 0.9,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    mask: Array = None,
) -> Leaves:
    """Liu et al. (2020)."""
    batch = oracle.moments(x, complement(feature_axes, x.ndim), mask)
    line = np.sqrt(_mean_square(x, _positions(x, feature_axes), mask) + epsilon) - x
    y = _over_larger(x, batch.var, line, scale, bias, feature_axes, epsilon)
    return (y, *update_running_stats(stats, batch, momentum=momentum, unbiased=unbiased))


def evo_norm_b2_inference(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """The running variance replaces that of the batch."""
    line = np.sqrt(_mean_square(x, _positions(x, feature_axes), mask) + epsilon) - x
    var = _along(stats[1], x, feature_axes)
    return (_over_larger(x, var, line, scale, bias, feature_axes, epsilon),)


def _over_larger(
    x: Array, var: Array, line: Array, scale: Array, bias: Array, axes: Any, epsilon: float
) -> Any:
    return _affine(x / np.maximum(np.sqrt(var + epsilon), line), scale, bias, axes)


def switchable_norm(
    x: Array,
    stats: Any,
    mean_weights: Array,
    var_weights: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    momentum: float | None = 0.9,
    epsilon: float = 1e-5,
    unbiased_instances: bool = False,
    mask: Array = None,
) -> Leaves:
    """Instance, layer and batch norm, each from its own definition."""
    batch = oracle.moments(x, complement(feature_axes, x.ndim), mask)
    if unbiased_instances:
        instance = _unbiased(oracle.moments(x, _positions(x, feature_axes), mask))
        batch = oracle.Moments(batch.mean, _var_of_pool(instance, (0,)), batch.count)
    weights, options = (mean_weights, var_weights), (epsilon, unbiased_instances, mask)
    y = _switchable_norm(x, batch[:2], weights, scale, bias, feature_axes, *options)
    return (y, *update_running_stats(stats, batch, momentum=momentum))


def switchable_norm_inference(
    x: Array,
    stats: Any,
    mean_weights: Array,
    var_weights: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    unbiased_instances: bool = False,
    mask: Array = None,
) -> Leaves:
    """The running statistics replace those of the batch."""
    batch, weights = [_along(a, x, feature_axes) for a in stats[:2]], (mean_weights, var_weights)
    options = epsilon, unbiased_instances, mask
    return (_switchable_norm(x, batch, weights, scale, bias, feature_axes, *options),)


def _switchable_norm(
    x: Array,
    batch: Any,
    weights: Any,
    scale: Array,
    bias: Array,
    axes: Any,
    epsilon: float,
    unbiased: bool,
    mask: Any,
) -> Any:
    instance = oracle.moments(x, _positions(x, axes), mask)
    layer = oracle.moments(x, tuple(range(1, x.ndim)), mask)
    if unbiased:
        instance = _unbiased(instance)
        layer = layer.mean, _var_of_pool(instance, _axes(axes, x.ndim))
    kinds = [instance, layer, batch]
    shares = [np.exp(w) / np.exp(w).sum() for w in weights]
    mean, var = (
        sum(share * kind[i] for share, kind in zip(shares[i], kinds, strict=True)) for i in (0, 1)
    )
    return _affine((x - mean) / np.sqrt(var + epsilon), scale, bias, axes)


def _unbiased(m: oracle.Moments) -> oracle.Moments:
    return oracle.Moments(m.mean, m.var * m.count / np.maximum(m.count - 1, 1), m.count)


def _var_of_pool(m: oracle.Moments, axes: Any) -> Any:
    """The variance of values in parts with the moments ``m``: mean of squares minus square of the mean."""
    n, mean, square = (
        a.sum(axes, keepdims=True)
        for a in (m.count, m.count * m.mean, m.count * (m.var + m.mean**2))
    )
    return square / n - (mean / n) ** 2


def iterative_whitening(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    steps: int = 5,
    feature_axes: Any = -1,
    momentum: float | None = 0.9,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """Huang et al. (2019), algorithm 1; the matrix is averaged, and without rows nothing changes."""
    assert momentum is not None
    counted = np.broadcast_to(_or_all(mask), x.shape)
    rows = np.moveaxis(x, feature_axes, -1)[np.moveaxis(counted, feature_axes, -1)[..., 0]]
    own, moved = stats, stats
    if len(rows):
        covariance = np.cov(rows, rowvar=False, bias=True) + epsilon * np.eye(rows.shape[-1])
        unit, p = covariance / np.trace(covariance), np.eye(rows.shape[-1])
        for _ in range(steps):
            p = (3 * p - p @ p @ p @ unit) / 2
        own = rows.mean(0), p / np.sqrt(np.trace(covariance))
        moved = (momentum * a + (1 - momentum) * b for a, b in zip(stats, own, strict=True))
    (y,) = iterative_whitening_inference(x, own, scale, bias, feature_axes=feature_axes)
    return (y, *moved)


def iterative_whitening_inference(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    mask: Array = None,
) -> Leaves:
    """Applies the running matrix; a masked NaN reads as the mean."""
    mean, matrix = stats
    last = np.moveaxis(x, feature_axes, -1)
    counted = np.moveaxis(np.broadcast_to(_or_all(mask), x.shape), feature_axes, -1)
    last = np.where(counted | np.isfinite(last), last, mean)
    y = np.moveaxis((last - mean) @ matrix, -1, feature_axes)
    return (_affine(y, scale, bias, feature_axes),)


# --- each example --------------------------------------------------------------------------------


def layer_norm(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    reduction_axes: Any = -1,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    mask: Array = None,
    activation: str | None = None,
) -> Leaves:
    """Ba, Kiros and Hinton (2016)."""
    m = oracle.moments(x, reduction_axes, mask)
    y = _affine(_standardized(x, m, epsilon), scale, bias, feature_axes)
    return (_activated(y, activation),)


def rms_norm(
    x: Array,
    scale: Array = None,
    *,
    reduction_axes: Any = -1,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    scale_after_cast: bool = False,
    fraction: float = 1.0,
    mask: Array = None,
    activation: str | None = None,
) -> Leaves:
    """The mean square covers only the first features if ``fraction`` is less than 1.

    In float64, ``scale_after_cast`` does not change any value.
    """
    (axis, *_) = _axes(reduction_axes, x.ndim)
    first = range(int(x.shape[axis] * fraction)) if fraction < 1 else range(x.shape[axis])
    counted = np.broadcast_to(_or_all(mask), x.shape)
    square = _mean_square(x.take(first, axis), reduction_axes, counted.take(first, axis))
    scale = None if scale is None else scale_offset + scale
    y = _affine(x / np.sqrt(square + epsilon), scale, None, feature_axes)
    return (_activated(y, activation),)


def gated_rms_norm(
    x: Array,
    gate: Array,
    scale: Array = None,
    *,
    feature_axes: Any = -1,
    num_groups: int = 1,
    norm_before_gate: bool = True,
    epsilon: float = 1e-6,
    mask: Array = None,
) -> Leaves:
    """Dao and Gu (2024)."""
    opened = gate / (1 + np.exp(-gate))
    before = x if norm_before_gate else x * opened
    axes = _axes(feature_axes, x.ndim)
    counted = np.broadcast_to(_or_all(mask), x.shape)
    parts = (np.split(a, num_groups, axes[0]) for a in (before, counted))
    squares = [_mean_square(a, axes, m) for a, m in zip(*parts, strict=True)]
    size = x.shape[axes[0]] // num_groups if num_groups > 1 else 1
    square = np.repeat(np.concatenate(squares, axes[0]), size, axes[0])
    y = _affine(before / np.sqrt(square + epsilon), scale, None, axes)
    return (y * opened if norm_before_gate else y,)


def group_norm(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axes: Any = -1,
    reduction_axes: Any = None,
    epsilon: float = 1e-6,
    mask: Array = None,
    activation: str | None = None,
) -> Leaves:
    """Each group has its own moments."""
    m = _moments_of_groups(x, num_groups, group_size, feature_axes, reduction_axes, mask)
    y = _affine(_standardized(x, m, epsilon), scale, bias, feature_axes)
    return (_activated(y, activation),)


def _moments_of_groups(
    x: Array,
    num_groups: int | None,
    group_size: int | None,
    channel: int,
    reduction_axes: Any,
    mask: Array,
) -> oracle.Moments:
    """The moments of each channel's group."""
    axes = tuple(range(1, x.ndim)) if reduction_axes is None else reduction_axes
    channels = x.shape[channel]
    size = group_size or channels // (num_groups or 1)
    counted = np.broadcast_to(_or_all(mask), x.shape)
    found = []
    for c in range(channels):
        group = range(c - c % size, c - c % size + size)
        found.append(oracle.moments(x.take(group, channel), axes, counted.take(group, channel)))
    return oracle.Moments(*(np.concatenate(of, channel) for of in zip(*found, strict=True)))


def evo_norm_s0(
    x: Array,
    v: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """Liu et al. (2020)."""
    m = _moments_of_groups(x, num_groups, group_size, feature_axes, None, mask)
    swish = x / (1 + np.exp(-_along(v, x, feature_axes) * x))
    return (_affine(swish / np.sqrt(m.var + epsilon), scale, bias, feature_axes),)


def evo_norm_s1(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """Liu et al. (2020)."""
    m = _moments_of_groups(x, num_groups, group_size, feature_axes, None, mask)
    y = _activated(x, "silu") / np.sqrt(m.var + epsilon)
    return (_affine(y, scale, bias, feature_axes),)


def evo_norm_s2(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """Liu et al. (2020)."""
    m = _moments_of_groups(x, num_groups, group_size, feature_axes, None, mask)
    y = _activated(x, "silu") / np.sqrt(m.var + m.mean**2 + epsilon)
    return (_affine(y, scale, bias, feature_axes),)


def instance_norm(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    mask: Array = None,
    activation: str | None = None,
) -> Leaves:
    """Ulyanov, Vedaldi and Lempitsky (2016)."""
    m = oracle.moments(x, _positions(x, feature_axes), mask)
    y = _affine(_standardized(x, m, epsilon), scale, bias, feature_axes)
    return (_activated(y, activation),)


def tracked_instance_norm(
    x: Array,
    stats: Any,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    momentum: float | None = 0.99,
    epsilon: float = 1e-6,
    unbiased: bool = False,
    mask: Array = None,
    activation: str | None = None,
) -> Leaves:
    """The statistics move towards the unweighted averages over instances."""
    own: Any = {"epsilon": epsilon, "mask": mask, "activation": activation}
    (y,) = instance_norm(x, scale, bias, feature_axes=feature_axes, **own)
    kept = _axes(feature_axes, x.ndim)
    last = [
        np.moveaxis(a, kept, range(-len(kept), 0)).reshape(*a.shape[:1], -1, stats[0].size)
        for a in (x, np.broadcast_to(_or_all(mask), x.shape))
    ]
    typical = oracle.Moments(*typical_moments(last[0], unbiased, last[1]))
    typical = oracle.Moments(*(a.reshape(stats[0].shape) for a in typical))
    return (y, *update_running_stats(stats, typical, momentum=momentum))


def filter_response_norm(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    threshold: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    mask: Array = None,
) -> Leaves:
    """Singh and Krishnan (2019)."""
    square = _mean_square(x, _positions(x, feature_axes), mask)
    y = _affine(x / np.sqrt(square + epsilon), scale, bias, feature_axes)
    return (y if threshold is None else np.maximum(y, _along(threshold, x, feature_axes)),)


def global_response_norm(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    mask: Array = None,
) -> Leaves:
    """Woo et al. (2023)."""
    square = np.where(_or_all(mask), x**2, 0)
    length = np.sqrt(square.sum(_positions(x, feature_axes), keepdims=True))
    typical = length.mean(_axes(feature_axes, x.ndim), keepdims=True)
    return (x + _affine(x * length / (typical + epsilon), scale, bias, feature_axes),)


def ada_layer_norm(
    x: Array,
    scale: Array,
    shift: Array,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    mask: Array = None,
) -> Leaves:
    """Peebles and Xie (2022)."""
    y = _standardized(x, oracle.moments(x, feature_axes, mask), epsilon)
    return modulate(y, scale, shift, feature_axes=feature_axes, scale_offset=1.0)


def add_rms_norm(
    x: Array,
    residual: Array,
    scale: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    scale_after_cast: bool = False,
    mask: Array = None,
) -> Leaves:
    """In float64, ``scale_after_cast`` does not change any value."""
    total = x + residual
    square = _mean_square(total, feature_axes, mask)
    scale = None if scale is None else scale_offset + scale
    return _affine(total / np.sqrt(square + epsilon), scale, None, feature_axes), total


def add_layer_norm(
    x: Array,
    residual: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    mask: Array = None,
) -> Leaves:
    """The layer norm of the sum, and the sum."""
    total = x + residual
    y = _standardized(total, oracle.moments(total, feature_axes, mask), epsilon)
    return _affine(y, scale, bias, feature_axes), total


def ada_rms_norm(
    x: Array,
    scale: Array,
    shift: Array = None,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    mask: Array = None,
) -> Leaves:
    """Crowson et al. (2024)."""
    square = _mean_square(x, feature_axes, _or_all(mask))
    y = x / np.sqrt(square + epsilon)
    return modulate(y, scale, shift, feature_axes=feature_axes, scale_offset=1.0)


def ada_group_norm(
    x: Array,
    scale: Array,
    shift: Array,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
) -> Leaves:
    """Dhariwal and Nichol (2021)."""
    m = _moments_of_groups(x, num_groups, group_size, feature_axes, None, mask)
    y = _standardized(x, m, epsilon)
    return modulate(y, scale, shift, feature_axes=feature_axes, scale_offset=1.0)


def adain(
    x: Array,
    style: Array,
    *,
    feature_axes: Any = -1,
    epsilon: float = 1e-5,
    mask: Array = None,
    style_mask: Array = None,
) -> Leaves:
    """Huang and Belongie (2017)."""
    (y,) = instance_norm(x, feature_axes=feature_axes, epsilon=epsilon, mask=mask)
    m = oracle.moments(style, _positions(style, feature_axes), style_mask)
    return (np.sqrt(m.var + epsilon) * y + m.mean,)


def modulate(
    x: Array,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    scale_offset: float = 0.0,
) -> Leaves:
    """Scale and bias have shape (examples, features)."""
    axes = (0, *_axes(feature_axes, x.ndim))
    return (_affine(x, None if scale is None else scale_offset + scale, bias, axes),)


# --- vectors -------------------------------------------------------------------------------------


def l2_normalize(
    x: Array,
    scale: Array = None,
    *,
    reduction_axes: Any = -1,
    feature_axes: Any = -1,
    epsilon: float = 1e-12,
    mask: Array = None,
) -> Leaves:
    """Divides by the Euclidean length."""
    square = np.where(_or_all(mask), x**2, 0).sum(_axes(reduction_axes, x.ndim), keepdims=True)
    return (_affine(x / np.sqrt(square + epsilon), scale, None, feature_axes),)


def lp_normalize(
    x: Array, *, p: float = 2.0, reduction_axes: Any = -1, epsilon: float = 1e-12
) -> Leaves:
    """Divides by the p-norm, or by ε if that is larger."""
    powers = (np.abs(x) ** p).sum(_axes(reduction_axes, x.ndim), keepdims=True)
    return (x / np.maximum(powers ** (1 / p), epsilon),)


def scale_norm(
    x: Array,
    scale: Array = 1.0,
    *,
    reduction_axes: Any = -1,
    epsilon: float = 1e-10,
    mask: Array = None,
) -> Leaves:
    """Nguyen and Salazar (2019)."""
    (y,) = l2_normalize(x, reduction_axes=reduction_axes, epsilon=epsilon, mask=mask)
    return (y * scale,)


def layer_scale(
    x: Array,
    scale: Array,
    *,
    multiplier: float = 1.0,
    feature_axes: Any = -1,
    mask: Array = None,
) -> Leaves:
    """Touvron et al. (2021)."""
    return (_readable(x, mask) * _along(scale, x, feature_axes) * multiplier,)


def pixel_norm(
    x: Array, *, feature_axes: Any = -1, epsilon: float = 1e-8, mask: Array = None
) -> Leaves:
    """Karras et al. (2017)."""
    return (x / np.sqrt(_mean_square(x, feature_axes, mask) + epsilon),)


def qk_norm(
    query: Array,
    key: Array,
    query_scale: Array = None,
    key_scale: Array = None,
    query_bias: Array = None,
    key_bias: Array = None,
    *,
    kind: str = "rms",
    reduction_axes: Any = -1,
    feature_axes: Any = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
) -> Leaves:
    """The same norm of both."""
    axes = _axes(reduction_axes, query.ndim)
    found = []
    for x, scale, bias in ((query, query_scale, query_bias), (key, key_scale, key_bias)):
        if kind == "layer":
            y = _standardized(x, oracle.moments(x, axes), epsilon)
        elif kind == "rms":
            y = x / np.sqrt((x**2).mean(axes, keepdims=True) + epsilon)
        else:
            y = x / np.sqrt((x**2).sum(axes, keepdims=True) + epsilon)
        scale = None if scale is None else scale_offset + scale
        found.append(_affine(y, scale, bias, feature_axes))
    return tuple(found)


def local_response_norm(
    x: Array,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    feature_axes: Any = -1,
    mask: Array = None,
) -> Leaves:
    """Krizhevsky, Sutskever and Hinton (2012); masked elements are 0 in the sums."""
    constants = size, alpha, beta, k, feature_axes
    return (oracle.local_response_norm(_readable(x, mask), *constants, mask=mask),)


# --- no statistics -------------------------------------------------------------------------------


def _readable(x: Array, mask: Array) -> Any:
    """A masked NaN reads as 0."""
    return np.where(_or_all(mask) | np.isfinite(x), x, 0)


def sim_norm(
    x: Array, *, simplex_size: int = 8, feature_axes: Any = -1, mask: Array = None
) -> Leaves:
    """Lavoie et al. (2022)."""
    powers = np.where(_or_all(mask), np.exp(_readable(x, mask)), 0)
    groups = np.split(powers, x.shape[feature_axes] // simplex_size, feature_axes)
    totals = [g.sum(feature_axes, keepdims=True) for g in groups]
    shares = [g / np.where(t == 0, 1, t) for g, t in zip(groups, totals, strict=True)]
    return (np.concatenate(shares, feature_axes),)


def derf(
    x: Array,
    alpha: Array = 0.5,
    shift: Array = 0.0,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    mask: Array = None,
) -> Leaves:
    """Chen et al. (2025)."""
    y = np.vectorize(math.erf)(alpha * _readable(x, mask) + shift)
    return (_affine(y, scale, bias, feature_axes),)


def dynamic_tanh(
    x: Array,
    alpha: Array = 0.5,
    scale: Array = None,
    bias: Array = None,
    *,
    feature_axes: Any = -1,
    mask: Array = None,
) -> Leaves:
    """Zhu et al. (2025)."""
    return (_affine(np.tanh(alpha * _readable(x, mask)), scale, bias, feature_axes),)


def act_norm(
    x: Array, log_scale: Array, bias: Array, *, feature_axes: Any = -1, mask: Array = None
) -> Leaves:
    """Kingma and Dhariwal (2018)."""
    shifted = _affine(_readable(x, mask), None, bias, feature_axes)
    positions = np.prod([x.shape[i] for i in _positions(x, feature_axes)])
    return _affine(shifted, np.exp(log_scale), None, feature_axes), positions * log_scale.sum()


def act_norm_inverse(y: Array, log_scale: Array, bias: Array, *, feature_axes: Any = -1) -> Leaves:
    """The inverse of `act_norm`."""
    return (_affine(y, np.exp(-log_scale), -bias, feature_axes),)


def init_act_norm(x: Array, *, feature_axes: Any = -1, epsilon: float = 1e-6) -> Leaves:
    """ε is added to the standard deviation."""
    reduced = complement(feature_axes, x.ndim)
    return -np.log(x.std(reduced) + epsilon), -x.mean(reduced)


# --- weights -------------------------------------------------------------------------------------


def weight_norm(
    kernel: Array, scale: Array = None, *, feature_axes: Any = -1, epsilon: float = 1e-12
) -> Leaves:
    """Salimans and Kingma (2016)."""
    reduced = complement(feature_axes, kernel.ndim)
    options: Any = {"reduction_axes": reduced, "feature_axes": feature_axes, "epsilon": epsilon}
    return l2_normalize(kernel, scale, **options)


def weight_standardization(
    kernel: Array, gain: Array = None, *, feature_axes: Any = -1, epsilon: float = 1e-10
) -> Leaves:
    """Qiao et al. (2019)."""
    m = oracle.moments(kernel, complement(feature_axes, kernel.ndim))
    return (_affine(_standardized(kernel, m, epsilon), gain, None, feature_axes),)


def scaled_weight_standardization(
    kernel: Array, gain: Array = None, *, feature_axes: Any = -1, epsilon: float = 1e-6
) -> Leaves:
    """Brock, De and Smith (2021)."""
    (w,) = weight_standardization(kernel, gain, feature_axes=feature_axes, epsilon=epsilon)
    return (w / np.sqrt(_fan_in(kernel, feature_axes)),)


def _fan_in(kernel: Array, feature_axes: Any) -> Any:
    return np.prod([kernel.shape[i] for i in complement(feature_axes, kernel.ndim)])


def magnitude_preserving(
    kernel: Array, gain: Array = 1.0, *, feature_axes: Any = -1, epsilon: float = 1e-4
) -> Leaves:
    """Karras et al. (2023)."""
    (w,) = forced_magnitude(kernel, feature_axes=feature_axes, epsilon=epsilon)
    return (w / np.sqrt(_fan_in(kernel, feature_axes)) * gain,)


def forced_magnitude(kernel: Array, *, feature_axes: Any = -1, epsilon: float = 1e-4) -> Leaves:
    """Divides by the sum of the root mean square and ε."""
    square = (kernel**2).mean(complement(feature_axes, kernel.ndim), keepdims=True)
    return (kernel / (np.sqrt(square) + epsilon),)


def spectral_norm(
    kernel: Array, state: Any, *, n_steps: int | None = 1, epsilon: float = 1e-12
) -> Leaves:
    """Miyato et al. (2018); ε is relative to a kernel with a largest weight of 1."""
    _, u, sigma = singular_vectors(kernel, state[0], n_steps, epsilon)
    return kernel / sigma, u, np.asarray(sigma)


def singular_vectors(
    kernel: Array, u: Array, n_steps: int | None, epsilon: float = 1e-12
) -> tuple[Any, Any, float]:
    """Returns v, u and σ after some steps of power iteration."""
    assert n_steps is not None  # the exact vectors have no defined sign
    matrix = wide(kernel).reshape(-1, kernel.shape[-1])
    unit = matrix / np.abs(matrix).max()
    u, v = wide(u), np.zeros((1, len(matrix)))
    for _ in range(n_steps):
        v = u @ unit.T
        v = v / np.sqrt((v**2).sum() + epsilon)
        u = v @ unit
        u = u / np.sqrt((u**2).sum() + epsilon)
    return v, u, (v @ matrix @ u.T).item()


def conv_spectral_norm(
    kernel: Array,
    image: Array,
    *,
    strides: Any = (1, 1),
    padding: Any = "SAME",
    n_steps: int = 1,
) -> Leaves:
    """Gouk et al. (2018)."""
    u, v = singular_images(kernel, image, strides, padding, n_steps)
    sigma = (u * conv(v, kernel, strides, padding)).sum()
    return kernel / sigma, v


def singular_images(
    kernel: Array, image: Array, strides: Any = (1, 1), padding: Any = "SAME", n_steps: int = 1
) -> tuple[Any, Any]:
    """Returns u and v of a convolution after some steps of power iteration; u comes from the last v."""
    image = wide(image)
    columns = np.eye(image.size).reshape(-1, *image.shape[1:])
    operator = conv(columns, wide(kernel), strides, padding)
    matrix = operator.reshape(image.size, -1).T
    v = image.ravel() / np.linalg.norm(image)
    for _ in range(n_steps):
        v = matrix.T @ (matrix @ v)
        v = v / np.linalg.norm(v)
    u = matrix @ v
    return (u / np.linalg.norm(u)).reshape(1, *operator.shape[1:]), v.reshape(image.shape)


def conv(images: Array, kernel: Array, strides: Any = (1, 1), padding: Any = "SAME") -> Any:
    """The convolution of neural networks: a sum over the positions of the kernel."""
    sizes = images.shape[1:3]
    if padding == "SAME":
        missing = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(sizes, strides, kernel.shape, strict=False)
        ]
        padding = [(m // 2, m - m // 2) for m in missing]
    elif padding == "VALID":
        padding = [(0, 0), (0, 0)]
    padded = np.pad(images, [(0, 0), *padding, (0, 0)])
    height, width = (
        (n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], kernel.shape, strides, strict=False)
    )
    rows, columns = strides
    return sum(
        padded[:, i : i + rows * height : rows, j : j + columns * width : columns][
            :, :height, :width
        ]
        @ kernel[i, j]
        for i, j in np.ndindex(*kernel.shape[:2])
    )
