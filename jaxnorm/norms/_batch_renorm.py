"""Batch renormalization (Ioffe, 2017, https://arxiv.org/abs/1702.03275)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, complement
from ..core._cpu_hints import materialize
from ..core._moments import reduce_moments
from ..core._normalize import normalize
from ..core._precision import check_real
from ..core._public import public
from ..core._residuals import rematerialized
from ..core._running import RunningStats, broadcast_running_stats, update_running_stats
from ._batch_norm import batch_norm_inference
from ._operands import operands
from ._ramp import Ramp
from ._recipe import Affine, Call, Shape, State, Tracked, present, scale_and_bias, stats_of

Limit: TypeAlias = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A number, or a schedule: a function of the number of steps done."""


@public
@rematerialized
def batch_renorm(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    rmax: float | jax.Array = 3.0,
    dmax: float | jax.Array = 5.0,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.99,
    epsilon: float = 1e-3,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Batch renorm in training: batch norm, corrected to what evaluation will compute, within limits.

        s = sqrt(σ² + ε)        r = clip(s / s̄, 1/rmax, rmax)        d = clip((μ - μ̄) / s̄, ±dmax)
        y = ((x - μ) / s · r + d) · scale + bias

    μ and σ² are those of the batch, μ̄ and s̄ running values; r and d are constants for the gradient. With
    rmax = 1 and dmax = 0 it is batch norm; where nothing is clipped, y is that of `batch_norm_inference`,
    which is evaluation.

    Args:
        x: activations of any rank and any integer or floating dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        stats: running statistics of the feature shape, from `init_running_stats` or the last step.
        scale: γ, of the feature shape; None is 1.
        bias: β, of the feature shape; None is 0.
        rmax: the limit of r, 1 or more. The paper starts at 1 and lets it rise to 3.
        dmax: the limit of d, 0 or more. The paper starts at 0 and lets it rise to 5.
        feature_axes: the axes that are kept: -1 for channels last, 1 for channels first.
        momentum: the weight of the *old* running value, in [0, 1]; None is the plain average of all batches.
            It is s that moves, not its square, as in the paper.
        epsilon: ε, added to the variance; zero or positive.
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map whose devices share statistics.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``, and RunningStats of the shapes and dtypes of ``stats``.

    Raises:
        ValueError: a shape, axis, mask, dtype, epsilon or momentum that cannot be; the message says what
            must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 2 + 3 * jax.random.normal(jax.random.key(0), (16, 8))  # a small batch
        >>> stats = jn.RunningStats(mean=jnp.full(8, 2.0), var=jnp.full(8, 9.0))
        >>> y, _ = jn.batch_renorm(x, stats)
        >>> print(jnp.allclose(y, jn.batch_norm_inference(x, stats, epsilon=1e-3), atol=1e-5))
        True
    """
    check_real("batch_renorm", "batch_norm", x, scale, bias)
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask, about_zero=False)
    old_mean, old_var = (
        a.astype(o.x.dtype) for a in broadcast_running_stats(stats, o.x, o.features)
    )
    reduced = complement(o.features, o.x.ndim)
    m = reduce_moments(o.x, reduced, o.mask, axis_name, axis_index_groups, narrow=o.narrow)
    std, old_std = jnp.sqrt(m.var + epsilon), jnp.sqrt(old_var + epsilon)
    r = lax.stop_gradient(jnp.clip(std / old_std, 1 / rmax, rmax))
    d = lax.stop_gradient(jnp.clip((m.mean - old_mean) / old_std, -dmax, dmax))
    gain, offset = (
        default if p is None else p for p, default in zip(o.parameters, (1, 0), strict=True)
    )
    # The correction is one of scale and bias.
    corrected = materialize(r * gain), materialize(d * gain + offset)
    y = normalize(o.x, m.mean, m.var, *corrected, epsilon=epsilon, mask=o.mask)

    old_std = old_std.reshape(stats.var.shape)
    moved = update_running_stats(
        stats._replace(var=old_std), m._replace(var=std), momentum=momentum
    )
    var = jnp.maximum(moved.var**2 - epsilon, 0).astype(stats.var.dtype)
    var = jnp.where(moved.var == old_std, stats.var, var)  # bit for bit where nothing moves
    return y.astype(o.dtype), moved._replace(var=var)


PAPERS_RMAX = Ramp(5_000, 40_000, 1.0, 3.0)
PAPERS_DMAX = Ramp(5_000, 25_000, 0.0, 5.0)


@dataclass(kw_only=True, eq=False)
class BatchRenormRecipe(Affine, Tracked):
    """A layer of `batch_renorm`; in evaluation, `batch_norm_inference`."""

    epsilon: float = 1e-3
    """Added to the variance."""
    rmax: Limit = PAPERS_RMAX
    """The limit of r: a number, or a schedule; by default that of the paper."""
    dmax: Limit = PAPERS_DMAX
    """The limit of d, likewise."""

    def state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``steps``, too, for the schedules."""
        return {**super().state(shape, dtype), "steps": jnp.zeros((), jnp.int32)}

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """In training, one step more."""
        options = {
            "feature_axes": self.feature_axes,
            "epsilon": self.epsilon,
            "mask": call.mask,
            "dtype": self.dtype,
        }
        stats, affine, steps = stats_of(variables), scale_and_bias(variables), variables["steps"]
        if call.evaluating:
            return batch_norm_inference(x, stats, *affine, **options), {}
        limits = {
            name: limit(steps) if callable(limit) else limit
            for name, limit in (("rmax", self.rmax), ("dmax", self.dmax))
        }
        y, updated = batch_renorm(
            x, stats, *affine, momentum=self.momentum, **limits, **options, **call.devices
        )
        return y, {**present(updated), "steps": steps + 1}
