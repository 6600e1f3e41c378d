"""Standardization by the mean and variance of all values so far, as for observations and inputs."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, complement
from ...core._moments import reduce_moments
from ...core._normalize import normalize
from ...core._precision import check_real
from ...core._residuals import rematerialized_if_differentiated
from ...core._running import RunningStats, broadcast_running_stats
from ...core.calling._public import public
from .._shared._prepare import Operands, operands
from .._shared._recipe import Call, Running, Shape, State
from .._shared._running_norm import RunningNorm
from ._input_stats import InputStats, init_input_norm, weighted_moments, with_batch


@public
@rematerialized_if_differentiated
def input_norm(
    x: jax.Array,
    stats: InputStats,
    *,
    weights: jax.Array | None = None,
    max_abs: float | jax.Array | None = None,
    feature_axes: Axes = -1,
    epsilon: float = 1e-8,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, InputStats]:
    """Input norm in training: adds x to the statistics of all values so far, and normalizes x with these.

        y = clip((x - mean) / sqrt(var + ε), ±max_abs)

    All values so far have the same weight, in any number of batches of any sizes. This standardizes
    observations in reinforcement learning (as Gym's ``RunningMeanStd``, Brax's ``running_statistics``) and
    features (as scikit-learn's ``StandardScaler``, Keras's ``Normalization``). Counts are exact up to 2⁴⁸,
    and after a billion values, the next thousand still move the mean.

    The statistics are constants: no gradient flows through them. To only update them, ignore y, which a
    compiled program then does not compute. For a tree of inputs, keep a tree of statistics:

        stats = jax.tree.map(lambda x: jn.init_input_norm(x.shape[-1]), inputs)
        stats = jax.tree.map(lambda x, s: jn.input_norm(x, s)[1], inputs, stats)
        y = jax.tree.map(jn.input_norm_inference, inputs, stats)

    Args:
        x: values of any rank and any integer or floating dtype; computed in float32 or wider.
        stats: the statistics so far, from `init_input_norm` or the previous step.
        weights: how much each value counts, 0 or more; broadcastable to ``x``. None means 1.
        max_abs: limit of the absolute values of y, greater than 0; None means no limit.
        feature_axes: axes that are not reduced: -1 for features last.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share statistics.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype of ``x``, or float32 if that is an integer.

    Returns:
        ``y``, with the shape of ``x``, and updated InputStats, with the shapes and dtypes of ``stats``. For
        evaluation, use `input_norm_inference`.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon, limit or weight is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 2 * jax.random.normal(jax.random.key(0), (3, 100, 4))
        >>> stats = jn.init_input_norm(4)
        >>> for batch in x:
        ...     y, stats = jn.input_norm(batch, stats)
        >>> print(jnp.allclose(stats.mean, x.mean((0, 1))), jnp.allclose(stats.var, x.var((0, 1))))
        True True
    """
    check_real("input_norm", "batch_norm", x)
    stats = _as_arrays(stats)
    o = _operands(x, feature_axes, mask, dtype)
    broadcast_running_stats(RunningStats(*stats[:2]), o.x, o.features)
    still, reduced = lax.stop_gradient(o.x), complement(o.features, o.x.ndim)
    if weights is None:
        narrow = lax.stop_gradient(o.narrow)
        m = reduce_moments(still, reduced, o.mask, axis_name, axis_index_groups, narrow=narrow)
    else:
        weights = lax.stop_gradient(jnp.asarray(weights))
        m = weighted_moments(still, weights, o.mask, reduced, axis_name, axis_index_groups)
    updated = with_batch(lax.stop_gradient(stats), m)
    y = _normalized(o, updated, epsilon, max_abs)
    return y, InputStats(*(new.astype(old.dtype) for new, old in zip(updated, stats, strict=True)))


@public
@rematerialized_if_differentiated
def input_norm_inference(
    x: jax.Array,
    stats: InputStats,
    *,
    max_abs: float | jax.Array | None = None,
    feature_axes: Axes = -1,
    epsilon: float = 1e-8,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Input norm in evaluation: normalizes x with the statistics of all values so far.

        y = clip((x - mean) / sqrt(var + ε), ±max_abs)

    Args:
        x: values of any rank and any integer or floating dtype; computed in float32 or wider.
        stats: the statistics, from `input_norm`.
        max_abs: limit of the absolute values of y, greater than 0; None means no limit.
        feature_axes: axes of the features: -1 for features last.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as the mean, so
            it does not affect gradients.
        dtype: dtype of ``y``; None means the dtype of ``x``, or float32 if that is an integer.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon or limit is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> _, stats = jn.input_norm(jnp.array([[1.0], [5.0]]), jn.init_input_norm(1))
        >>> print(jn.input_norm_inference(jnp.array([[5.0], [99.0]]), stats, max_abs=10.0).squeeze())
        [ 1. 10.]
    """
    check_real("input_norm_inference", "batch_norm_inference", x)
    stats = _as_arrays(stats)
    return _normalized(_operands(x, feature_axes, mask, dtype), stats, epsilon, max_abs)


@public
@rematerialized_if_differentiated
def input_norm_inverse(
    y: jax.Array,
    stats: InputStats,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-8,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Inverts `input_norm_inference`, as for a model that predicts normalized targets.

        x = y · sqrt(var + ε) + mean

    Args:
        y: output of `input_norm_inference`, of any integer or floating dtype; computed in float32 or wider.
        stats: the statistics it was normalized with.
        feature_axes: axes of the features: -1 for features last.
        epsilon: ε, added to the variance; zero or positive.
        dtype: dtype of the result; None means the dtype of ``y``, or float32 if that is an integer.

    Returns:
        ``x``, with the shape of ``y``.

    Raises:
        ValueError: If a shape, axis, dtype or epsilon is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> _, stats = jn.input_norm(jnp.array([[1.0], [5.0]]), jn.init_input_norm(1))
        >>> print(jn.input_norm_inverse(jnp.array([[1.0], [-2.0]]), stats).squeeze())
        [ 5. -1.]
    """
    check_real("input_norm_inverse", "batch_norm_inference", y)
    stats = _as_arrays(stats)
    o = _operands(y, feature_axes, None, dtype)
    mean, var = broadcast_running_stats(RunningStats(*stats[:2]), o.x, o.features)
    variance = var.astype(o.x.dtype) + epsilon
    std = jnp.sqrt(jnp.where(variance == 0, 1, variance))
    return (o.x * std + mean.astype(o.x.dtype)).astype(o.dtype)


def _operands(
    x: jax.Array, feature_axes: Axes, mask: jax.Array | None, dtype: DTypeLike | None
) -> Operands:
    return operands(x, {}, feature_axes=feature_axes, dtype=dtype, mask=mask, about_zero=False)


def _normalized(
    o: Operands, stats: InputStats, epsilon: float, max_abs: float | jax.Array | None
) -> jax.Array:
    """Returns y in the dtype of the result."""
    mean, var = broadcast_running_stats(RunningStats(*stats[:2]), o.x, o.features)
    y = normalize(o.x, mean, var, None, None, epsilon=epsilon, mask=o.mask)
    y = y if max_abs is None else jnp.clip(y, -max_abs, max_abs)
    return y.astype(o.dtype)


def _as_arrays(stats: InputStats) -> InputStats:
    if not isinstance(stats, InputStats):
        raise ValueError(
            f"stats must be InputStats; got {type(stats).__name__}. Start from "
            f"init_input_norm(feature_shape) and pass what the last step returned; convert a dict or a "
            f"tuple from a checkpoint with InputStats(**d) or InputStats(*t)."
        )
    return InputStats(*map(jnp.asarray, stats))


@dataclass(kw_only=True, eq=False)
class InputNormRecipe(Running):
    """Input norm (`jaxnorm.input_norm`): standardizes inputs by the statistics of all inputs so far.

    The function takes weights, too.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.InputNorm(max_abs=10.0)
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'count': (4,), 'mean': (4,), 'remainder': (3, 4), 'var': (4,)}}
        >>> layer = jnx.InputNorm(4, max_abs=10.0, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        count mean remainder var (8, 4)
    """

    max_abs: float | jax.Array | None = None
    """Limit of the absolute values of y; None means no limit."""
    epsilon: float = 1e-8
    """Added to the variance."""

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``mean``, ``var``, ``count`` and ``remainder``."""
        return init_input_norm(shape)._asdict()

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        # They are statistics of all values so far, and counted: new ones could not continue them.
        return RunningNorm(self.feature_axes, self.epsilon, None, of_batch=False)

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the statistics."""
        return self._in_mode(call, input_norm, input_norm_inference, x, InputStats(**variables))
