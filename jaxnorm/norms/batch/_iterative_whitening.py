"""Iterative normalization for decorrelation (Huang et al., 2019, https://arxiv.org/abs/1904.03441)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._all_reduce import AxisName
from ...core._axes import Axes, one_axis
from ...core._moving_average import moving_average
from ...core._placement import replicated, resharded, sharded_like
from ...core._precision import check_real
from ...core._residuals import rematerialized, rematerialized_if_differentiated
from ...core.calling._public import public
from .._shared._arithmetic import affine
from .._shared._prepare import Operands, operands, readable
from .._shared._recipe import Affine, Call, Shape, State, Tracked, scale_and_bias
from .._shared._running_norm import RunningNorm
from ._whitening_of import mask_of_rows, whitened_rows, whitening_of_groups
from ._whitening_stats import WhiteningStats, fits, init_whitening


@public
@rematerialized
def iterative_whitening(
    x: jax.Array,
    stats: WhiteningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    steps: int = 5,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.9,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, WhiteningStats]:
    """IterNorm in training: normalizes the batch to mean 0 and variance 1, and decorrelates its features.

        Σ = E[(x - μ)(x - μ)ᵀ] + ε I      y = Σ^(-1/2) (x - μ) · scale + bias

    The inverse square root is computed by ``steps`` Newton iterations. If ``stats`` are those of groups of
    channels (`init_whitening`), each group is whitened by itself, which takes fewer examples.

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        stats: running whitening statistics, from `init_whitening` or the previous step.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        steps: number of Newton iterations; 5 gives a good approximation, more a better one.
        feature_axes: the channel axis (exactly one).
        momentum: weight of the *old* running value, in [0, 1]. The running average is of the whitening
            matrix, not of Σ.
        epsilon: ε, added to the variances; 0 or more.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics. Must be
            the same for all channels.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share statistics.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``, and updated WhiteningStats. For evaluation, use
        `iterative_whitening_inference`.

    Raises:
        ValueError: If there is more than one feature axis, if the mask differs between channels, or if
            another argument is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> a = jax.random.normal(jax.random.key(0), (256, 2))
        >>> x = a @ jnp.array([[1.0, 0.8], [0.0, 0.6]])  # features with a correlation of 0.8
        >>> y, _ = jn.iterative_whitening(x, jn.init_whitening(2), steps=10)
        >>> print(jnp.abs(jnp.cov(y, rowvar=False, bias=True) - jnp.eye(2)).max() < 1e-3)
        True
    """
    if momentum is None:
        raise ValueError(
            "momentum must be a number in [0, 1] here; got None. Averaging all batches equally is not "
            "supported for whitening matrices; 0.9 is typical."
        )
    check_real("iterative_whitening", "batch_norm", x, scale, bias)
    r = _rows_of(x, stats, scale, bias, feature_axes, mask, dtype)
    count, *own = whitening_of_groups(r.rows, r.counted, r.stats.matrix, steps, epsilon, axis_name)
    old = WhiteningStats(*(replicated(a, r.rows).astype(r.rows.dtype) for a in r.stats))
    moved = (moving_average(before, new, momentum) for before, new in zip(old, own, strict=True))
    # If all elements are masked, keep the old statistics.
    updated = (
        jnp.where(count > 0, sharded_like(new.astype(a.dtype), a), a)
        for a, new in zip(r.stats, moved, strict=True)
    )
    used = (jnp.where(count > 0, new, before) for new, before in zip(own, old, strict=True))
    return _whitened(r, *used), WhiteningStats(*updated)


@public
@rematerialized_if_differentiated
def iterative_whitening_inference(
    x: jax.Array,
    stats: WhiteningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """IterNorm in evaluation: applies the running whitening matrix.

        y = matrix (x - mean) · scale + bias

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        stats: running whitening statistics.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: the channel axis (exactly one).
        mask: boolean or integer, broadcastable to ``x`` and the same for all channels; a masked NaN or
            infinity is treated as the mean, so it does not affect gradients.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If there is more than one feature axis, if the mask differs between channels, or if
            another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.WhiteningStats(mean=jnp.ones(2), matrix=jnp.array([[0.5, 0.0], [0.0, 2.0]]))
        >>> print(jn.iterative_whitening_inference(jnp.array([[3.0, 2.0]]), stats))
        [[1. 2.]]
    """
    check_real("iterative_whitening_inference", "batch_norm_inference", x, scale, bias)
    r = _rows_of(x, stats, scale, bias, feature_axes, mask, dtype)
    return _whitened(r, *(replicated(a, r.rows).astype(r.rows.dtype) for a in r.stats))


class _Rows(NamedTuple):
    """The prepared arguments, with the channels last."""

    operands: Operands
    stats: WhiteningStats
    channel: int
    rows: jax.Array
    counted: jax.Array | None


def _rows_of(
    x: jax.Array,
    stats: WhiteningStats,
    scale: jax.Array | None,
    bias: jax.Array | None,
    feature_axes: Axes,
    mask: jax.Array | None,
    dtype: DTypeLike | None,
) -> _Rows:
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask, about_zero=False)
    channel = one_axis(feature_axes, o.x.ndim, "feature_axes", "the channels")
    rows = jnp.moveaxis(o.x, channel, -1)
    stats = _fitting(stats, rows.shape[-1])
    # Do not shard the channels on a mesh with explicit axes: each is multiplied with every other.
    sharding = jax.typeof(rows).sharding
    rows = resharded(rows, sharding.mesh, *sharding.spec[:-1], None)
    return _Rows(o, stats, channel, rows, mask_of_rows(o.mask, channel))


def _fitting(stats: WhiteningStats, features: int) -> WhiteningStats:
    """Returns ``stats`` with jax arrays, if they are for ``features`` channels."""
    if isinstance(stats, WhiteningStats):
        stats = WhiteningStats(*map(jnp.asarray, stats))
        if fits(stats, features):
            return stats
    raise ValueError(
        f"stats must be WhiteningStats for the {features} channels of x; got {stats!r}. Start from "
        f"init_whitening({features})."
    )


def _whitened(r: _Rows, mean: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns y in the dtype of the result."""
    mean = mean.reshape((1,) * (r.rows.ndim - 1) + mean.shape)
    centered = readable(r.rows, r.counted, mean) - mean
    whitened = whitened_rows(centered, matrix)
    y = affine(jnp.moveaxis(whitened, -1, r.channel), *r.operands.parameters)
    return y.astype(r.operands.dtype)


@dataclass(kw_only=True, eq=False)
class IterativeWhiteningRecipe(Affine, Tracked):
    """Iterative whitening (`jaxnorm.iterative_whitening`): batch norm that also decorrelates the features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.IterativeWhitening()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'matrix': (4, 4), 'mean': (4,)}, 'params': {'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.IterativeWhitening(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias matrix mean scale (8, 4)
    """

    momentum: float | jax.Array | None = 0.9
    """Weight of the *old* running value (PyTorch: the new one)."""
    epsilon: float = 1e-5
    """Added to the variances."""
    steps: int = 5
    """Number of Newton iterations."""
    num_groups: int = 1
    """Number of groups of consecutive channels, each whitened by itself; must divide the channels."""

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``mean`` and ``matrix``."""
        if len(shape) != 1 or self.axis_index_groups is not None:
            raise ValueError(
                f"whitening requires a single channel axis and no axis_index_groups; got features of shape "
                f"{shape} and axis_index_groups={self.axis_index_groups}. Reshape the channels into one "
                f"axis; give groups of devices their own axis name."
            )
        return init_whitening(*shape, num_groups=self.num_groups)._asdict()

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum, of_batch=False)

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics."""
        stats = WhiteningStats(variables["mean"], variables["matrix"])
        given = (x, stats, *scale_and_bias(variables))
        return self._in_mode(call, iterative_whitening, iterative_whitening_inference, *given)
