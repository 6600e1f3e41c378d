"""Adaptive RMS norm of diffusion models (Crowson et al., 2024, https://arxiv.org/abs/2401.11605)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes
from ...core._precision import arithmetic_dtype, result_dtype
from ...core._residuals import rematerialized
from ...core.calling._public import public
from ..sample._rms_norm import rms_norm
from ._adaptive import AdaptiveRecipe
from ._modulate import modulate


@public
@rematerialized
def ada_rms_norm(
    x: jax.Array,
    scale: jax.Array,
    shift: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Adaptive RMS norm, with a scale per example, computed from a condition, and possibly a shift.

        y = x / sqrt(mean(x²) + ε) · (1 + scale) + shift

    Args:
        x: activations (examples, ..., features) of any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: of shape (examples, *features), or of the same rank as ``x`` and broadcastable to it.
        shift: same shape options as ``scale``; None means 0.
        feature_axes: the feature axes, which are reduced.
        epsilon: ε, added to the mean square; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the mean square.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``shift`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If the shape of ``scale`` or ``shift`` does not fit ``x``, or if another argument is
            invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
        >>> print(jn.ada_rms_norm(x, jnp.ones((1, 4)), epsilon=0.0))
        [[2.4 3.2 0.  0. ]]
    """
    x, scale = jnp.asarray(x), jnp.asarray(scale)
    shift = None if shift is None else jnp.asarray(shift)
    y = rms_norm(
        x,
        reduction_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        dtype=arithmetic_dtype(x, scale, shift),
    )
    y_dtype = result_dtype(dtype, x, scale, shift)
    return modulate(y, scale, shift, feature_axes=feature_axes, scale_offset=1.0, dtype=y_dtype)


@dataclass(kw_only=True, eq=False)
class AdaRMSNormRecipe(AdaptiveRecipe):
    """Adaptive RMS norm (`jaxnorm.ada_rms_norm`): its scale and shift come from a condition, passed after x.

    The condition has shape (examples, ..., condition_features). Scale and shift, in this order, are a linear
    map of silu(condition), initialized to 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.AdaRMSNorm(condition_features=3, use_shift=False)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 3)))
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (1, 4), 'kernel': (3, 1, 4)}}
        >>> layer = jnx.AdaRMSNorm(4, condition_features=3, rngs=nnx.Rngs(0))
        >>> y = layer(x, jnp.ones((2, 3)))
        >>> print(*nnx.state(layer), y.shape)
        bias kernel (2, 10, 4)
    """

    _function = staticmethod(ada_rms_norm)

    epsilon: float = 1e-6
    """Added to the mean square."""
    use_shift: bool = True
    """Whether to compute a shift too."""


@dataclass(kw_only=True, eq=False)
class AdaRMSNormZeroRecipe(AdaRMSNormRecipe):
    """Like `AdaRMSNorm`, but returns (y, gate); x + gate · f(y) starts out as x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.AdaRMSNormZero(condition_features=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 3)))
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (3, 4), 'kernel': (3, 3, 4)}}
        >>> layer = jnx.AdaRMSNormZero(4, condition_features=3, rngs=nnx.Rngs(0))
        >>> y, gate = layer(x, jnp.ones((2, 3)))
        >>> print(*nnx.state(layer), y.shape)
        bias kernel (2, 10, 4)
    """

    _is_gated = True
