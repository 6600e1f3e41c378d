"""Batch norm at test time, with a mixture of running and batch statistics."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, canonical_axes, complement
from ...core._moments import moments
from ...core._running import RunningStats, as_arrays, update_running_stats
from ...core.calling._public import public
from ._batch_norm import batch_norm_inference


@public
def batch_norm_adapted(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    running_share: float | jax.Array,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Batch norm under distribution shift: evaluates with a mixture of running and batch statistics.

        mean = running_share · running mean + (1 - running_share) · μ        (var likewise)
        y = (x - mean) / sqrt(var + ε) · scale + bias

    Schneider et al. (2020, https://arxiv.org/abs/2006.16971) use a running share of N / (N + n) for batches
    of n images, with N around 16.

    Args:
        x: activations of any rank and any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes; they are not updated.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        running_share: weight of the running statistics, in [0, 1]. 1 is `batch_norm_inference`; 0 normalizes
            as in training.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share statistics.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``running_share`` is outside [0, 1], or if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.zeros(1), var=jnp.ones(1))
        >>> x = jnp.array([[3.0], [5.0]])
        >>> for share in (1.0, 0.5, 0.0):
        ...     print(jn.batch_norm_adapted(x, stats, running_share=share).squeeze().round(2))
        [3. 5.]
        [1. 3.]
        [-1.  1.]
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    devices = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    m = moments(x, complement(features, x.ndim), mask=mask, **devices)
    mean, var, _ = as_arrays(stats)
    wide = RunningStats(mean.astype(m.mean.dtype), var.astype(m.var.dtype))
    mixed = update_running_stats(wide, m, momentum=running_share)
    return batch_norm_inference(
        x, mixed, scale, bias, feature_axes=features, epsilon=epsilon, mask=mask, dtype=dtype
    )
