"""EvoNorm-B1, a combined norm and activation (Liu et al., 2020, https://arxiv.org/abs/2004.02967)."""

from dataclasses import dataclass

import jax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes
from ...core._pool import pool
from ...core._precision import check_real
from ...core._residuals import rematerialized
from ...core._running import RunningStats, broadcast_running_stats, update_running_stats
from ...core._sync import pool_over_devices
from ...core.calling._public import public
from .._shared._arithmetic import moments_of_instances, root
from .._shared._evo_norm import OfBatch, divided_by_larger, mean_square
from .._shared._prepare import operands
from .._shared._recipe import Call, State, scale_and_bias, stats_of


@public
@rematerialized
def evo_norm_b1(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.9,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """EvoNorm-B1 in training: divides by the larger of the batch deviation and a multiple of x + 1.

        y = x / max(sqrt(σ² + ε), (x + 1) sqrt(ρ_i² + ε)) · scale + bias

    σ² is the batch variance; ρ_i² is the mean square of each channel of each example. The norm includes the
    nonlinearity, so no activation follows it.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype, batch axis first.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes. The mean is updated as in `batch_norm`
            but not used.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        momentum: weight of the *old* running value, in [0, 1]; None weights all batches equally.
        epsilon: ε, added to the variance and the mean square; zero or positive.
        unbiased: update the running variance with the batch variance times n / (n - 1), as timm does.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share σ².
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``, and updated RunningStats, with the shapes and dtypes of ``stats``. For
        evaluation, use `evo_norm_b1_inference`.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon or momentum is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
        >>> y, stats = jn.evo_norm_b1(x, jn.init_running_stats(4), momentum=0.0)
        >>> print(jnp.allclose(y, jn.evo_norm_b1_inference(x, stats), atol=1e-5))
        True
    """
    check_real("evo_norm_b1", "batch_norm", x, scale, bias)
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask)
    broadcast_running_stats(stats, o.x, o.features)
    instances = moments_of_instances(o)
    m = pool_over_devices(pool(instances, 0), axis_name, axis_index_groups)
    y = divided_by_larger(o, m.var, _line(o.x, mean_square(instances), epsilon), epsilon)
    return y, update_running_stats(stats, m, momentum=momentum, unbiased=unbiased)


@public
@rematerialized
def evo_norm_b1_inference(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """EvoNorm-B1 in evaluation: the running variance replaces that of the batch.

        y = x / max(sqrt(var + ε), (x + 1) sqrt(ρ_i² + ε)) · scale + bias

    ρ_i² is the mean square of each channel of each example.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype, batch axis first.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes. The mean is not used.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        epsilon: ε, added to the variance and the mean square; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in ρ_i².
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype or epsilon is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.zeros(1), var=jnp.array([1.0]))
        >>> x = jnp.array([[[2.0], [2.0], [-2.0]]])
        >>> print(jn.evo_norm_b1_inference(x, stats, epsilon=0.0).squeeze().round(3))
        [ 0.333  0.333 -2.   ]
    """
    check_real("evo_norm_b1_inference", "batch_norm_inference", x, scale, bias)
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask)
    _, var = broadcast_running_stats(stats, o.x, o.features)
    line = _line(o.x, mean_square(moments_of_instances(o)), epsilon)
    return divided_by_larger(o, var.astype(o.x.dtype), line, epsilon)


def _line(x: jax.Array, mean_square: jax.Array, epsilon: float) -> jax.Array:
    return (x + 1) * root(mean_square + epsilon)


@dataclass(kw_only=True, eq=False)
class EvoNormB1Recipe(OfBatch):
    """EvoNorm-B1 (`jaxnorm.evo_norm_b1`): batch norm and activation in one layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 6, 6, 4))
        >>> layer = jnl.EvoNormB1()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'var': (4,)}, 'params': {'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.EvoNormB1(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale var (8, 6, 6, 4)
    """

    epsilon: float = 1e-5
    """Added to the variance and the mean square."""

    def _activated(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics."""
        given = (x, stats_of(variables), *scale_and_bias(variables))
        return self._in_mode(call, evo_norm_b1, evo_norm_b1_inference, *given)
