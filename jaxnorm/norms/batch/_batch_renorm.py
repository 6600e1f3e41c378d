"""Batch renormalization (Ioffe, 2017, https://arxiv.org/abs/1702.03275)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, complement
from ...core._moments import reduce_moments
from ...core._normalize import normalize
from ...core._precision import check_real
from ...core._residuals import rematerialized
from ...core._running import RunningStats, as_arrays, broadcast_running_stats, update_running_stats
from ...core.calling._public import public
from ...core.lowering._cpu_hints import materialize
from .._shared._arithmetic import root
from .._shared._prepare import operands
from .._shared._ramp import Ramp
from .._shared._recipe import Affine, Call, Shape, State, Tracked, present, scale_and_bias, stats_of
from .._shared._running_norm import RunningNorm
from ._batch_norm import batch_norm_inference

Limit: TypeAlias = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A number, or a schedule: a function of the number of completed steps."""
Form: TypeAlias = Literal["paper", "crossq"]


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
    form: Form = "paper",
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.99,
    epsilon: float = 1e-3,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Batch renorm in training: batch norm corrected, within limits, to match evaluation.

        s = sqrt(σ² + ε)        r = clip(s / s̄, 1/rmax, rmax)        d = clip((μ - μ̄) / s̄, ±dmax)
        y = ((x - μ) / s · r + d) · scale + bias

    μ and σ² are batch statistics, μ̄ and s̄ are running values. No gradient flows through r and d. With
    rmax = 1 and dmax = 0 this is batch norm; where nothing is clipped, y equals the output of
    `batch_renorm_inference`.

    With ``form="crossq"`` this is batch renorm as in CrossQ (Bhatt et al., 2024,
    https://openreview.net/forum?id=PczQtTsTIX) and sbx. It adds ε after the correction, and keeps a running
    average of σ² instead of s:

        y = (x - μ + d σ / r) / sqrt(σ² / r² + ε) · scale + bias

    Args:
        x: activations of any rank and any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes, from `init_running_stats` or the
            previous step.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        rmax: limit of r, at least 1. The paper increases it from 1 to 3.
        dmax: limit of d, at least 0. The paper increases it from 0 to 5.
        form: ``"paper"``, or ``"crossq"`` for the form above.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        momentum: weight of the *old* running value, in [0, 1]; None weights all batches equally. As in the
            paper, the running average is of s, not of its square, unless ``form`` is ``"crossq"``.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share statistics.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``, and updated RunningStats, with the shapes and dtypes of ``stats``. For
        evaluation, use `batch_renorm_inference`.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon, momentum, limit or form is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 2 + 3 * jax.random.normal(jax.random.key(0), (16, 8))  # a small batch
        >>> stats = jn.RunningStats(mean=jnp.full(8, 2.0), var=jnp.full(8, 9.0))
        >>> y, _ = jn.batch_renorm(x, stats)
        >>> print(jnp.allclose(y, jn.batch_renorm_inference(x, stats), atol=1e-5))
        True
    """
    check_real("batch_renorm", "batch_norm", x, scale, bias)
    _check_form(form)
    stats, given = as_arrays(stats), {"scale": scale, "bias": bias}
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
    # Fold the correction into scale and bias.
    if form == "crossq":
        var = m.var / r**2
        offset = materialize(d * _share(var, epsilon) * gain + offset)
        y = normalize(o.x, m.mean, var, o.parameters[0], offset, epsilon=epsilon, mask=o.mask)
        return y.astype(o.dtype), update_running_stats(stats, m, momentum=momentum)
    corrected = materialize(r * gain), materialize(d * gain + offset)
    y = normalize(o.x, m.mean, m.var, *corrected, epsilon=epsilon, mask=o.mask)

    old_std = old_std.reshape(stats.var.shape)
    moved = update_running_stats(
        stats._replace(var=old_std), m._replace(var=std), momentum=momentum
    )
    var = jnp.maximum(moved.var**2 - epsilon, 0).astype(stats.var.dtype)
    var = jnp.where(moved.var == old_std, stats.var, var)  # bitwise unchanged if nothing moved
    return y.astype(o.dtype), moved._replace(var=var)


def _share(var: jax.Array, epsilon: float) -> jax.Array:
    """Returns σ / sqrt(σ² + ε)."""
    total = var + epsilon
    return root(var) / jnp.sqrt(jnp.where(total == 0, 1, total))


def _check_form(form: Form) -> None:
    if form not in get_args(Form):
        raise ValueError(
            f"form must be 'paper' or 'crossq'; got {form!r}. The first averages the standard deviation, the "
            f"second the variance."
        )


@public
def batch_renorm_inference(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-3,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Batch renorm in evaluation: `batch_norm_inference` with the default epsilon of `batch_renorm`.

        y = (x - mean) / sqrt(var + ε) · scale + bias

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        stats: running statistics with the shape of the feature axes.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as the mean, so
            it does not affect gradients.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype or epsilon is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.array([10.0]), var=jnp.array([4.0]))
        >>> print(jn.batch_renorm_inference(jnp.array([[10.0], [12.0]]), stats, epsilon=0.0).squeeze())
        [0. 1.]
    """
    check_real("batch_renorm_inference", "batch_norm_inference", x, scale, bias)
    options = {"feature_axes": feature_axes, "epsilon": epsilon, "mask": mask, "dtype": dtype}
    return batch_norm_inference(x, stats, scale, bias, **options)


PAPERS_RMAX = Ramp(5_000, 40_000, 1.0, 3.0)
PAPERS_DMAX = Ramp(5_000, 25_000, 0.0, 5.0)


@dataclass(kw_only=True, eq=False)
class BatchRenormRecipe(Affine, Tracked):
    """Batch renorm (`jaxnorm.batch_renorm`): batch norm whose training output agrees with evaluation.

    For CrossQ as in sbx, use ``form="crossq", rmax=3.0, dmax=5.0, warmup_steps=100_000``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.BatchRenorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'steps': (), 'var': (4,)}, 'params': {'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.BatchRenorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale steps var (8, 4)
    """

    epsilon: float = 1e-3
    """Added to the variance."""
    rmax: Limit = PAPERS_RMAX
    """Limit of r: a number or a schedule; defaults to the schedule of the paper."""
    dmax: Limit = PAPERS_DMAX
    """Limit of d: a number or a schedule; defaults to the schedule of the paper."""
    form: Form = "paper"
    """``"paper"``, or ``"crossq"``, which averages the variance and adds ε after the correction."""
    warmup_steps: int = 0
    """Number of first steps in which r is 1 and d is 0, as in batch norm."""

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """The running statistics, and ``steps`` for the schedules."""
        return {**super()._initial_state(shape, dtype), "steps": jnp.zeros((), jnp.int32)}

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        # It averages the standard deviation, and counts steps.
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum, averaged=False)

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics and ``steps``."""
        stats, affine, steps = stats_of(variables), scale_and_bias(variables), variables["steps"]
        if call.evaluating:
            options = self._options(call, batch_renorm_inference)
            return batch_renorm_inference(x, stats, *affine, **options), {}
        options = self._options(call, batch_renorm)
        for name, of_batch_norm in (("rmax", 1.0), ("dmax", 0.0)):
            limit = options[name](steps) if callable(options[name]) else options[name]
            if self.warmup_steps:
                limit = jnp.where(steps < self.warmup_steps, of_batch_norm, limit)
            options[name] = limit
        y, updated = batch_renorm(x, stats, *affine, **options)
        return y, {**present(updated), "steps": steps + 1}
