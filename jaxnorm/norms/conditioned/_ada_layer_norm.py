"""Adaptive layer norm of diffusion transformers (Peebles and Xie, 2022, https://arxiv.org/abs/2212.09748)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes
from ...core._precision import arithmetic_dtype, result_dtype
from ...core._residuals import rematerialized
from ...core.calling._public import public
from ..sample._layer_norm import layer_norm
from ._adaptive import AdaptiveRecipe
from ._modulate import modulate


@public
@rematerialized
def ada_layer_norm(
    x: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """AdaLN: layer norm with a scale and shift per example, computed from a condition.

        y = (x - μ) / sqrt(σ² + ε) · (1 + scale) + shift

    Args:
        x: activations (examples, ..., features) of any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: of shape (examples, *features), or of the same rank as ``x`` and broadcastable to it.
        shift: same shape options as ``scale``.
        feature_axes: the feature axes, which are reduced.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``shift`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If the shape of ``scale`` or ``shift`` does not fit ``x``, or if another argument is
            invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jax.random.normal(jax.random.key(0), (2, 10, 64))
        >>> scale = jnp.stack([jnp.ones(64), jnp.full(64, 2.0)])
        >>> y = jn.ada_layer_norm(x, scale, jnp.zeros((2, 64)))
        >>> print(y.std((1, 2)).round(2))
        [2. 3.]
    """
    x, scale, shift = map(jnp.asarray, (x, scale, shift))
    y = layer_norm(
        x,
        reduction_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        dtype=arithmetic_dtype(x, scale, shift),
    )
    y_dtype = result_dtype(dtype, x, scale, shift)
    return modulate(y, scale, shift, feature_axes=feature_axes, scale_offset=1.0, dtype=y_dtype)


@dataclass(kw_only=True, eq=False)
class AdaLayerNormRecipe(AdaptiveRecipe):
    """AdaLN (`jaxnorm.ada_layer_norm`): layer norm with scale and shift from a condition, passed after x.

    The condition has shape (examples, ..., condition_features). Scale and shift, in this order, are a linear
    map of silu(condition), initialized to 0. (DiT puts the shift first.)

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.AdaLayerNorm(condition_features=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 3)))
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (2, 4), 'kernel': (3, 2, 4)}}
        >>> layer = jnx.AdaLayerNorm(4, condition_features=3, rngs=nnx.Rngs(0))
        >>> y = layer(x, jnp.ones((2, 3)))
        >>> print(*nnx.state(layer), y.shape)
        bias kernel (2, 10, 4)
    """

    _function = staticmethod(ada_layer_norm)

    epsilon: float = 1e-6
    """Added to the variance."""


@dataclass(kw_only=True, eq=False)
class AdaLayerNormZeroRecipe(AdaLayerNormRecipe):
    """AdaLN-Zero: like `AdaLayerNorm`, but returns (y, gate); x + gate · f(y) starts out as x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.AdaLayerNormZero(condition_features=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 3)))
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (3, 4), 'kernel': (3, 3, 4)}}
        >>> layer = jnx.AdaLayerNormZero(4, condition_features=3, rngs=nnx.Rngs(0))
        >>> y, gate = layer(x, jnp.ones((2, 3)))
        >>> print(*nnx.state(layer), y.shape)
        bias kernel (2, 10, 4)
    """

    _is_gated = True
