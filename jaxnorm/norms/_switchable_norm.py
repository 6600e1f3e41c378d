"""Switchable normalization (Luo et al., 2018, https://arxiv.org/abs/1806.10779)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, axes_of_instances, complement
from ..core._moments import reduce_moments
from ..core._normalize import normalize
from ..core._pool import pool
from ..core._public import public
from ..core._residuals import rematerialized
from ..core._running import RunningStats, broadcast_running_stats, update_running_stats
from ..core._sync import pool_over_devices
from ._operands import operands
from ._recipe import (
    Affine,
    Call,
    Parameter,
    Shape,
    State,
    Tracked,
    present,
    scale_and_bias,
    stats_of,
)


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
    training: bool,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.9,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Switchable norm: learns how much of instance, layer and batch norm it is.

        μ = Σ_k softmax(mean_weights)_k μ_k        σ² = Σ_k softmax(var_weights)_k σ_k²
        y = (x - μ) / sqrt(σ² + ε) · scale + bias        k: instance, layer, batch

    Moments are taken once, of each channel of each example, and pooled over channels and over examples. In
    evaluation, those of the batch are the running ones. All variances divide by the number of values. (The
    authors' code divides those of instances by one less.)

    Args:
        x: activations of rank 2 or more and any integer or floating dtype, the batch first.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        stats: running statistics of the feature shape.
        mean_weights: three numbers before the softmax: instance, layer, batch.
        var_weights: likewise.
        scale: γ, of the shape of ``feature_axes``; None is 1.
        bias: β, likewise; None is 0.
        training: use the moments of the batch and move ``stats``; otherwise use those and leave them.
        feature_axes: the axes that are kept: -1 for channels last, 1 for channels first.
        momentum: the weight of the *old* running value, in [0, 1]; None is the plain average of all batches.
        epsilon: ε, added to the variance; zero or positive.
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map whose devices share those of the batch.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``, and RunningStats of the shapes and dtypes of ``stats``.

    Raises:
        ValueError: a shape, axis, mask, dtype, epsilon or momentum that cannot be; the message says what
            must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jax.random.normal(jax.random.key(0), (8, 16, 16, 4))
        >>> instance = jnp.array([100.0, 0.0, 0.0])  # all of it
        >>> y, _ = jn.switchable_norm(x, jn.init_running_stats(4), instance, instance, training=True)
        >>> print(jnp.allclose(y, jn.instance_norm(x, epsilon=1e-5), atol=1e-5))
        True
    """
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask, about_zero=False)
    mean, var = (a.astype(o.x.dtype) for a in broadcast_running_stats(stats, o.x, o.features))
    positions = complement(axes_of_instances(o.x, o.features), o.x.ndim)
    of_instances = reduce_moments(o.x, positions, o.mask, None, None, narrow=o.narrow)
    of_layer = pool(of_instances, o.features)
    if training:
        of_batch = pool_over_devices(pool(of_instances, 0), axis_name, axis_index_groups)
        stats = update_running_stats(stats, of_batch, momentum=momentum)
        mean, var = of_batch.mean, of_batch.var
    means, variances = (
        (of_instances.mean, of_layer.mean, mean),
        (of_instances.var, of_layer.var, var),
    )
    mixed = (
        _weighted_mean(mean_weights, "mean_weights", means),
        _weighted_mean(var_weights, "var_weights", variances),
    )
    y = normalize(o.x, *mixed, *o.parameters, epsilon=epsilon, mask=o.mask)
    return y.astype(o.dtype), stats


def _weighted_mean(weights: jax.Array, name: str, values: tuple[jax.Array, ...]) -> jax.Array:
    weights = jnp.asarray(weights)
    if weights.shape != (3,):
        raise ValueError(
            f"{name} must be three numbers, of instance, layer and batch norm; got shape {weights.shape}. "
            f"Start from jnp.ones(3), a third of each."
        )
    shares = jax.nn.softmax(weights.astype(values[0].dtype))
    return shares[0] * values[0] + shares[1] * values[1] + shares[2] * values[2]


@dataclass(kw_only=True, eq=False)
class SwitchableNormRecipe(Affine, Tracked):
    """A layer of `switchable_norm`."""

    momentum: float | jax.Array | None = 0.9
    """The weight of the *old* running value (PyTorch's is that of the new one); None: the plain average."""
    epsilon: float = 1e-5
    """Added to the variance."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """The weights first."""
        weights = Parameter(initializers.ones, (3,))
        return {"mean_weights": weights, "var_weights": weights, **super().parameters(shape)}

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Moves the running statistics in training."""
        y, updated = switchable_norm(
            x,
            stats_of(variables),
            variables["mean_weights"],
            variables["var_weights"],
            *scale_and_bias(variables),
            training=not call.evaluating,
            feature_axes=self.feature_axes,
            momentum=self.momentum,
            epsilon=self.epsilon,
            mask=call.mask,
            dtype=self.dtype,
            **call.devices,
        )
        return y, {} if call.evaluating else present(updated)
