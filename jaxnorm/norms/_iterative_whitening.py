"""Iterative normalization (Huang et al., 2019, https://arxiv.org/abs/1904.03441), which decorrelates."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..core._all_reduce import AxisName
from ..core._axes import Axes, one_axis
from ..core._moving_average import moving_average
from ..core._placement import replicated, resharded
from ..core._precision import check_real
from ..core._public import public
from ..core._residuals import rematerialized
from ._operands import affine, operands, readable
from ._recipe import Affine, Call, Shape, State, Tracked, scale_and_bias
from ._whitening_of import mask_of_rows, whitening_of
from ._whitening_stats import WhiteningStats, init_whitening


@public
@rematerialized
def iterative_whitening(
    x: jax.Array,
    stats: WhiteningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    training: bool,
    steps: int = 5,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.9,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, WhiteningStats]:
    """IterNorm: gives the features of the batch mean 0, variance 1, and no correlation.

        Σ = E[(x - μ)(x - μ)ᵀ] + ε        y = Σ^(-1/2) (x - μ) · scale + bias

    The root is made by ``steps`` of Newton's iteration.

    Args:
        x: activations of any rank and any integer or floating dtype. Statistics and arithmetic are in float32
            or wider.
        stats: from `init_whitening` or the last step.
        scale: γ, of the shape of the channels; None is 1.
        bias: β, likewise; None is 0.
        training: use the statistics of the batch and move ``stats``; otherwise use those and leave them.
        steps: of Newton's iteration; 5 come near, more come nearer.
        feature_axes: the one axis of the channels.
        momentum: the weight of the *old* running value, in [0, 1]. It is the matrix that moves, not Σ.
        epsilon: ε, added to the variances; positive.
        mask: True counts. Boolean or integer, broadcastable to ``x`` and the same for all channels; what is
            masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map whose devices share statistics.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``, and WhiteningStats.

    Raises:
        ValueError: there are several feature axes, a mask differs between channels, or another argument
            cannot be; the message says what must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> a = jax.random.normal(jax.random.key(0), (256, 2))
        >>> x = a @ jnp.array([[1.0, 0.8], [0.0, 0.6]])  # features of a correlation of 0.8
        >>> y, _ = jn.iterative_whitening(x, jn.init_whitening(2), training=True, steps=10)
        >>> print(jnp.abs(jnp.cov(y, rowvar=False, bias=True) - jnp.eye(2)).max() < 1e-3)
        True
    """
    check_real("iterative_whitening", "batch_norm", x, scale, bias)
    o = operands(
        x,
        {"scale": scale, "bias": bias},
        feature_axes=feature_axes,
        dtype=dtype,
        mask=mask,
        about_zero=False,
    )
    channel = one_axis(feature_axes, o.x.ndim, "feature_axes", "the channels")
    rows = jnp.moveaxis(o.x, channel, -1)
    features, counted = rows.shape[-1], mask_of_rows(o.mask, channel)
    if not isinstance(stats, WhiteningStats) or stats.matrix.shape != (features, features):
        raise ValueError(
            f"stats must be WhiteningStats for the {features} channels of x; got {stats!r}. Start from "
            f"init_whitening({features})."
        )
    # On a mesh with explicit axes: every channel is multiplied with every other.
    rows = resharded(rows, *jax.typeof(rows).sharding.spec[:-1], None)
    mean, matrix = (replicated(a).astype(rows.dtype) for a in stats)
    if momentum is None:
        raise ValueError(
            "momentum must be a number in [0, 1] here; got None. There is no plain average of whitening "
            "matrices: 0.9 is usual."
        )
    if training:
        count, *own = whitening_of(rows, counted, steps, epsilon, axis_name)
        moved = (
            moving_average(old, new, momentum) for old, new in zip((mean, matrix), own, strict=True)
        )
        # With nothing counted, everything stays as it was.
        stats = WhiteningStats(
            *(
                jnp.where(
                    count > 0, resharded(new.astype(old.dtype), *jax.typeof(old).sharding.spec), old
                )
                for old, new in zip(stats, moved, strict=True)
            )
        )
        mean, matrix = (
            jnp.where(count > 0, new, old) for new, old in zip(own, (mean, matrix), strict=True)
        )
    mean = mean.reshape((1,) * (rows.ndim - 1) + mean.shape)
    centered = readable(rows, counted, mean) - mean
    whitened = jnp.matmul(centered, matrix, precision=lax.Precision.HIGHEST)
    y = affine(jnp.moveaxis(whitened, -1, channel), *o.parameters)
    return y.astype(o.dtype), stats


@dataclass(kw_only=True, eq=False)
class IterativeWhiteningRecipe(Affine, Tracked):
    """A layer of `iterative_whitening`."""

    momentum: float | jax.Array | None = 0.9
    """The weight of the *old* running value (PyTorch's is that of the new one)."""
    epsilon: float = 1e-5
    """Added to the variances."""
    steps: int = 5
    """Of Newton's iteration."""

    def state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``mean`` and ``matrix``."""
        if len(shape) != 1 or self.axis_index_groups is not None:
            raise ValueError(
                f"whitening has one axis of channels and no axis_index_groups; got features of shape {shape} "
                f"and axis_index_groups={self.axis_index_groups}. Reshape the axes into one; let groups of "
                f"devices have an axis name of their own."
            )
        return init_whitening(*shape)._asdict()

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Moves the running statistics in training."""
        y, updated = iterative_whitening(
            x,
            WhiteningStats(variables["mean"], variables["matrix"]),
            *scale_and_bias(variables),
            training=not call.evaluating,
            steps=self.steps,
            feature_axes=self.feature_axes,
            momentum=self.momentum,
            epsilon=self.epsilon,
            mask=call.mask,
            axis_name=call.devices.get("axis_name"),
            dtype=self.dtype,
        )
        return y, {} if call.evaluating else updated._asdict()
