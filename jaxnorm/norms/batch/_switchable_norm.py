"""Switchable normalization (Luo et al., 2018, https://arxiv.org/abs/1806.10779)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes
from ...core._normalize import normalize
from ...core._pool import Moments, pool, unbiased_variance
from ...core._residuals import rematerialized
from ...core._running import RunningStats, broadcast_running_stats, update_running_stats
from ...core._sync import pool_over_devices
from ...core.calling._public import public
from .._shared._arithmetic import moments_of_instances
from .._shared._prepare import Operands, operands
from .._shared._recipe import (
    Affine,
    Call,
    Parameter,
    Shape,
    State,
    Tracked,
    scale_and_bias,
    stats_of,
)
from .._shared._running_norm import RunningNorm


@public
@rematerialized
def switchable_norm(
    x: jax.Array,
    stats: RunningStats,
    mean_weights: jax.Array,
    var_weights: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.9,
    epsilon: float = 1e-5,
    unbiased_instances: bool = False,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Switchable norm in training: learns a weighted combination of instance, layer and batch norm.

        μ = Σ_k softmax(mean_weights)_k μ_k        σ² = Σ_k softmax(var_weights)_k σ_k²
        y = (x - μ) / sqrt(σ² + ε) · scale + bias        k: instance, layer, batch

    Moments are computed once, for each channel of each example, and then pooled over channels and over
    examples. All variances divide by the number of values n, unless ``unbiased_instances``.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype, batch axis first.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes.
        mean_weights: three logits of the mean weights: instance, layer, batch.
        var_weights: three logits of the variance weights, in the same order.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        momentum: weight of the *old* running value, in [0, 1]; None weights all batches equally.
        epsilon: ε, added to the variance; zero or positive.
        unbiased_instances: whether to multiply the variances of instances by n / (n - 1) before they are
            pooled, as the authors' code does.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share the batch statistics.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``, and updated RunningStats, with the shapes and dtypes of ``stats``. For
        evaluation, use `switchable_norm_inference`.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon or momentum is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
        >>> instance = jnp.array([100.0, 0.0, 0.0])  # only instance norm
        >>> y, _ = jn.switchable_norm(x, jn.init_running_stats(4), instance, instance)
        >>> print(jnp.allclose(y, jn.instance_norm(x, epsilon=1e-5), atol=1e-5))
        True
    """
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask, about_zero=False)
    broadcast_running_stats(stats, o.x, o.features)
    of_instances = _moments_of_instances(o, unbiased_instances)
    of_batch = pool_over_devices(pool(of_instances, 0), axis_name, axis_index_groups)
    batch = of_batch.mean, of_batch.var
    y = _normalized_by_mixture(o, of_instances, batch, mean_weights, var_weights, epsilon)
    return y, update_running_stats(stats, of_batch, momentum=momentum)


@public
@rematerialized
def switchable_norm_inference(
    x: jax.Array,
    stats: RunningStats,
    mean_weights: jax.Array,
    var_weights: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    unbiased_instances: bool = False,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Switchable norm in evaluation: running statistics replace those of the batch.

    The formula is that of `switchable_norm`; the running mean and variance are μ_k and σ_k² of batch norm.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype, batch axis first.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes.
        mean_weights: three logits of the mean weights: instance, layer, batch.
        var_weights: three logits of the variance weights, in the same order.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        epsilon: ε, added to the variance; zero or positive.
        unbiased_instances: whether to multiply the variances of instances by n / (n - 1) before they are
            pooled, as the authors' code does.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics of
            instance and layer norm.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype or epsilon is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
        >>> stats = jn.RunningStats(mean=jnp.full(4, 2.0), var=jnp.full(4, 9.0))
        >>> batch = jnp.array([0.0, 0.0, 100.0])  # only batch norm
        >>> y = jn.switchable_norm_inference(x, stats, batch, batch)
        >>> print(jnp.allclose(y, jn.batch_norm_inference(x, stats), atol=1e-5))
        True
    """
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask, about_zero=False)
    mean, var = (a.astype(o.x.dtype) for a in broadcast_running_stats(stats, o.x, o.features))
    of_instances = _moments_of_instances(o, unbiased_instances)
    return _normalized_by_mixture(o, of_instances, (mean, var), mean_weights, var_weights, epsilon)


def _moments_of_instances(o: Operands, unbiased: bool) -> Moments:
    m = moments_of_instances(o)
    return m._replace(var=unbiased_variance(m.var, jnp.asarray(m.count))) if unbiased else m


def _normalized_by_mixture(
    o: Operands,
    of_instances: Moments,
    batch: tuple[jax.Array, jax.Array],
    mean_weights: jax.Array,
    var_weights: jax.Array,
    epsilon: float,
) -> jax.Array:
    """Returns y in the dtype of the result; ``batch`` is the mean and the variance of batch norm."""
    of_layer = pool(of_instances, o.features)
    _, share_b, share_c = _shares(mean_weights, "mean_weights", o.x.dtype)
    # Differences from the first: three equal means give exactly that mean, although rounded shares do not add
    # up to 1.
    a, b, c = of_instances.mean, of_layer.mean, batch[0]
    mean = a + share_b * (b - a) + share_c * (c - a)
    share_a, share_b, share_c = _shares(var_weights, "var_weights", o.x.dtype)
    var = share_a * of_instances.var + share_b * of_layer.var + share_c * batch[1]
    y = normalize(o.x, mean, var, *o.parameters, epsilon=epsilon, mask=o.mask)
    return y.astype(o.dtype)


def _shares(weights: jax.Array, name: str, dtype: jnp.dtype) -> jax.Array:
    """The softmax of three weights."""
    weights = jnp.asarray(weights)
    if weights.shape != (3,):
        raise ValueError(
            f"{name} must be three numbers, one each for instance norm, layer norm and batch norm; got shape "
            f"{weights.shape}. Start from jnp.ones(3), which weights them equally."
        )
    return jax.nn.softmax(weights.astype(dtype))


@dataclass(kw_only=True, eq=False)
class SwitchableNormRecipe(Affine, Tracked):
    """Switchable norm (`jaxnorm.switchable_norm`): a learned mixture of instance, layer and batch norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 6, 6, 4))
        >>> layer = jnl.SwitchableNorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(*variables["batch_stats"], *variables["params"])
        mean var mean_weights var_weights scale bias
        >>> layer = jnx.SwitchableNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean mean_weights scale var var_weights (8, 6, 6, 4)
    """

    momentum: float | jax.Array | None = 0.9
    """Weight of the *old* running value (PyTorch: the new one); None weights all batches equally."""
    epsilon: float = 1e-5
    """Added to the variance."""
    unbiased_instances: bool = False
    """Multiply the variances of instances by n / (n - 1) before they are pooled, as the authors' code."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``mean_weights`` and ``var_weights``, then scale and bias."""
        weights = Parameter(initializers.ones, (3,))
        return {"mean_weights": weights, "var_weights": weights, **super()._parameters(shape)}

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        averaged = not self.unbiased_instances
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum, averaged=averaged)

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics."""
        weights = variables["mean_weights"], variables["var_weights"]
        given = (x, stats_of(variables), *weights, *scale_and_bias(variables))
        return self._in_mode(call, switchable_norm, switchable_norm_inference, *given)
