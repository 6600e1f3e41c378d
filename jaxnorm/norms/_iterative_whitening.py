"""Iterative normalization for decorrelation (Huang et al., 2019, https://arxiv.org/abs/1904.03441)."""

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
    """IterNorm: normalizes the features of the batch to mean 0 and variance 1, and decorrelates them.

        Σ = E[(x - μ)(x - μ)ᵀ] + ε I      y = Σ^(-1/2) (x - μ) · scale + bias

    The inverse square root is computed by ``steps`` Newton iterations.

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        stats: running whitening statistics, from `init_whitening` or the previous step.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        training: True normalizes with the batch statistics and updates ``stats``; False normalizes with
            ``stats`` and returns it unchanged.
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
        ``y``, with the shape of ``x``, and updated WhiteningStats.

    Raises:
        ValueError: If there is more than one feature axis, if the mask differs between channels, or if
            another argument is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> a = jax.random.normal(jax.random.key(0), (256, 2))
        >>> x = a @ jnp.array([[1.0, 0.8], [0.0, 0.6]])  # features with a correlation of 0.8
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
    # Do not shard the channels on a mesh with explicit axes: each is multiplied with every other.
    rows = resharded(rows, *jax.typeof(rows).sharding.spec[:-1], None)
    mean, matrix = (replicated(a).astype(rows.dtype) for a in stats)
    if momentum is None:
        raise ValueError(
            "momentum must be a number in [0, 1] here; got None. Averaging all batches equally is not "
            "supported for whitening matrices; 0.9 is typical."
        )
    if training:
        count, *own = whitening_of(rows, counted, steps, epsilon, axis_name)
        moved = (
            moving_average(old, new, momentum) for old, new in zip((mean, matrix), own, strict=True)
        )
        # If all elements are masked, keep the old statistics.
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
    """Recipe for an `iterative_whitening` layer."""

    momentum: float | jax.Array | None = 0.9
    """Weight of the *old* running value (PyTorch: the new one)."""
    epsilon: float = 1e-5
    """Added to the variances."""
    steps: int = 5
    """Number of Newton iterations."""

    def state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``mean`` and ``matrix``."""
        if len(shape) != 1 or self.axis_index_groups is not None:
            raise ValueError(
                f"whitening requires a single channel axis and no axis_index_groups; got features of shape "
                f"{shape} and axis_index_groups={self.axis_index_groups}. Reshape the channels into one "
                f"axis; give groups of devices their own axis name."
            )
        return init_whitening(*shape)._asdict()

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics."""
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
