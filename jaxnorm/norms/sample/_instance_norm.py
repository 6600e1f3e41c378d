"""Instance normalization (Ulyanov, Vedaldi and Lempitsky, 2016, https://arxiv.org/abs/1607.08022)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, axes_of_instances, canonical_axes, complement
from ...core._moments import reduce_moments
from ...core._pool import Moments, unbiased_variance
from ...core._running import RunningStats, broadcast_running_stats, update_running_stats
from ...core.calling._public import public
from .._shared._normalized_by import normalized_by
from .._shared._prepare import prepare


@public
def instance_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    activation: str | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Instance norm: normalizes each channel of each example independently.

        y = activation((x - μ) / sqrt(σ² + ε) · scale + bias)

    μ and σ² are computed over all axes except the first (batch) axis and ``feature_axes``.

    Args:
        x: activations of rank 2 or more and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced, besides the batch axis.
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
        ValueError: If ``feature_axes`` includes axis 0, or if another argument is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
        >>> y = jn.instance_norm(x)
        >>> print(y.std((1, 2)).round(3))
        [[1. 1. 1.]
         [1. 1. 1.]]
    """
    devices = axis_name, axis_index_groups
    return _by_instance(x, scale, bias, feature_axes, epsilon, mask, devices, activation, dtype)[0]


@public
def tracked_instance_norm(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.99,
    epsilon: float = 1e-6,
    unbiased: bool = False,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    activation: str | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Instance norm in training that also updates running statistics for use in `batch_norm_inference`.

    ``y`` is the output of `instance_norm`. The running mean and variance are updated with the plain averages
    of the means and variances of the instances, as in PyTorch's ``InstanceNorm(track_running_stats=True)``.
    These averages ignore the spread of the means: evaluation divides by the standard deviation of a typical
    instance.

    Args:
        x: activations of rank 2 or more and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes, from `init_running_stats` or the
            previous step.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced, besides the batch axis.
        momentum: weight of the *old* running value, in [0, 1]; None weights all batches equally and needs
            ``init_running_stats(..., cumulative=True)``. PyTorch's momentum is the weight of the new value,
            so its 0.1 is 0.9 here.
        epsilon: ε, added to the variance; zero or positive. (PyTorch's default is 1e-5.)
        unbiased: update the running variance with the instance variances times n / (n - 1), as PyTorch does.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics. Fully
            masked instances are excluded from the averages.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the positions are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` from ``jax.nn``, computed in the same pass;
            None applies no activation.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``, and updated RunningStats, with the shapes and dtypes of ``stats``.

    Raises:
        ValueError: If ``feature_axes`` includes axis 0, or if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])  # two instances of one channel
        >>> y, stats = jn.tracked_instance_norm(x, jn.init_running_stats(1), momentum=0.0)
        >>> print(stats.mean, stats.var)
        [11.] [50.5]
    """
    x = jnp.asarray(x)
    broadcast_running_stats(stats, x, canonical_axes(feature_axes, x.ndim, "feature_axes"))
    devices = axis_name, axis_index_groups
    y, m = _by_instance(x, scale, bias, feature_axes, epsilon, mask, devices, activation, dtype)
    return y, update_running_stats(stats, _typical(m, unbiased), momentum=momentum)


def _by_instance(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    feature_axes: Axes,
    epsilon: float,
    mask: jax.Array | None,
    devices: tuple[AxisName | None, AxisIndexGroups | None],
    activation: str | None,
    dtype: DTypeLike | None,
) -> tuple[jax.Array, Moments]:
    given = {"scale": scale, "bias": bias}
    p = prepare(x, given, feature_axes=feature_axes, mask=mask, dtype=dtype, activation=activation)
    reduced = complement(axes_of_instances(p.x, p.features), p.x.ndim)

    def take_moments(x: jax.Array, mask: jax.Array | None, narrow: jax.Array) -> Moments:
        return reduce_moments(x, reduced, mask, *devices, narrow=narrow)

    return normalized_by(take_moments, p, epsilon=epsilon, activation=activation)


def _typical(m: Moments, unbiased: bool) -> Moments:
    """Returns the plain average of the instance moments along the first axis, and the number of instances."""
    n = jnp.broadcast_to(m.count, m.mean.shape)
    var = unbiased_variance(m.var, n) if unbiased else m.var
    instances = (n > 0).sum(0, keepdims=True, dtype=var.dtype)

    def average(a: jax.Array) -> jax.Array:
        total = jnp.where(n > 0, a, 0).sum(0, keepdims=True)
        return total / jnp.maximum(instances, 1).astype(total.dtype)

    return Moments(average(m.mean), average(var), instances)
