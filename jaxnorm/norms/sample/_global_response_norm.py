"""Global response normalization (Woo et al., 2023, https://arxiv.org/abs/2301.00808)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._axes import Axes, axes_of_instances, complement
from ...core._moments import reduce_moments_about_zero
from ...core._residuals import rematerialized
from ...core.calling._public import public
from ...core.lowering._cpu_hints import rounded
from .._shared._arithmetic import affine, root
from .._shared._prepare import operands
from .._shared._recipe import Affine, Call, Initializer, State, scale_and_bias


@public
@rematerialized
def global_response_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """GRN: amplifies each channel by its norm relative to the mean norm of all channels of the example.

        g = ‖x‖₂ (per channel)        y = x + x · g / (mean g + ε) · scale + bias

    The norm is over all axes except the first (batch) axis and ``feature_axes``; the mean is over
    ``feature_axes``.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1. Initialize it to 0, so
            that y = x.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: the channel axes.
        epsilon: ε, added to the mean norm; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the norms.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``feature_axes`` includes axis 0, or if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[[3.0, 1.0], [-3.0, 1.0]]])  # one example, two channels, one three times the other
        >>> print(jn.global_response_norm(x).round(2))
        [[[ 7.5  1.5]
          [-7.5  1.5]]]
    """
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask)
    positions = complement(axes_of_instances(o.x, o.features), o.x.ndim)
    m = reduce_moments_about_zero(o.x, positions, o.mask, None, None)
    length = root(m.var * m.count)
    typical = length.mean(o.features, keepdims=True) + epsilon
    share = length / jnp.where(typical == 0, 1, typical)
    return (o.x + rounded(affine(o.x * share, *o.parameters))).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class GlobalResponseNormRecipe(Affine):
    """Global response norm (`jaxnorm.global_response_norm`): makes channels compete.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.GlobalResponseNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.GlobalResponseNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias scale (2, 8, 8, 4)
    """

    epsilon: float = 1e-6
    """Added to the mean norm."""
    scale_init: Initializer = initializers.zeros
    """Initializer of the scale; with zeros, the layer starts as the identity."""

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        y = global_response_norm(
            x,
            *scale_and_bias(variables),
            **self._options(call, global_response_norm),
        )
        return y, {}
