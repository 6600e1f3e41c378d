"""Mean-only batch norm (Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868, section 4)."""

from dataclasses import dataclass

import jax
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, complement
from ...core._moments import reduce_moments
from ...core._residuals import rematerialized, rematerialized_if_differentiated
from ...core._running import RunningStats, broadcast_running_stats, update_running_stats
from ...core.calling._public import public
from .._shared._arithmetic import affine
from .._shared._prepare import Operands, operands, readable
from .._shared._recipe import Call, Initializer, Parameter, Shape, State, Tracked, stats_of
from .._shared._running_norm import RunningNorm


@public
@rematerialized
def mean_only_batch_norm(
    x: jax.Array,
    stats: RunningStats,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.99,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Mean-only batch norm in training: subtracts the batch mean without dividing by a deviation.

        y = x - μ + bias

    Intended for networks with weight norm, which sets the scale.

    Args:
        x: activations of any rank and any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes. The variance is updated but
            not used.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        momentum: weight of the *old* running value, in [0, 1]; None weights all batches equally.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share statistics.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``, and updated RunningStats, with the shapes and dtypes of ``stats``. For
        evaluation, use `mean_only_batch_norm_inference`.

    Raises:
        ValueError: If a shape, axis, mask, dtype or momentum is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[1.0], [5.0]])
        >>> y, stats = jn.mean_only_batch_norm(x, jn.init_running_stats(1), momentum=0.5)
        >>> print(y.squeeze(), stats.mean)
        [-2.  2.] [1.5]
    """
    o = _operands(x, bias, feature_axes, mask, dtype)
    broadcast_running_stats(stats, o.x, o.features)
    reduced = complement(o.features, o.x.ndim)
    m = reduce_moments(o.x, reduced, o.mask, axis_name, axis_index_groups, narrow=o.narrow)
    return _centered(o, m.mean), update_running_stats(stats, m, momentum=momentum)


@public
@rematerialized_if_differentiated
def mean_only_batch_norm_inference(
    x: jax.Array,
    stats: RunningStats,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Mean-only batch norm in evaluation: subtracts the running mean.

        y = x - mean + bias

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        stats: running statistics with the shape of the feature axes.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as the mean, so
            it does not affect gradients.
        dtype: dtype of ``y``; None means the dtype that ``x`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask or dtype is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.array([1.5]), var=jnp.array([4.0]))
        >>> print(jn.mean_only_batch_norm_inference(jnp.array([[1.0], [5.0]]), stats).squeeze())
        [-0.5  3.5]
    """
    o = _operands(x, bias, feature_axes, mask, dtype)
    mean, _ = broadcast_running_stats(stats, o.x, o.features)
    return _centered(o, mean)


def _operands(
    x: jax.Array,
    bias: jax.Array | None,
    feature_axes: Axes,
    mask: jax.Array | None,
    dtype: DTypeLike | None,
) -> Operands:
    return operands(
        x, {"bias": bias}, feature_axes=feature_axes, dtype=dtype, mask=mask, about_zero=False
    )


def _centered(o: Operands, mean: jax.Array) -> jax.Array:
    """Returns x - mean + bias in the dtype of the result."""
    mean = mean.astype(o.x.dtype)
    y = affine(readable(o.x, o.mask, mean) - mean, None, *o.parameters)
    return y.astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class MeanOnlyBatchNormRecipe(Tracked):
    """Mean-only batch norm (`jaxnorm.mean_only_batch_norm`): subtracts the batch mean; used with weight norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.MeanOnlyBatchNorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'var': (4,)}, 'params': {'bias': (4,)}}
        >>> layer = jnx.MeanOnlyBatchNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean var (8, 4)
    """

    use_bias: bool = True
    """Whether to add a learned bias."""
    bias_init: Initializer = initializers.zeros
    """Initializer of the bias."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """The bias, if ``use_bias`` is set."""
        return {"bias": Parameter(self.bias_init, shape)} if self.use_bias else {}

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        return RunningNorm(self.feature_axes, 0.0, self.momentum)

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics."""
        given = (x, stats_of(variables), variables.get("bias"))
        return self._in_mode(call, mean_only_batch_norm, mean_only_batch_norm_inference, *given)
