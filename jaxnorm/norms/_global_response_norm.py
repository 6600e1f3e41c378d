"""Global response normalization (Woo et al., 2023, https://arxiv.org/abs/2301.00808)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ..core._axes import Axes, axes_of_instances, complement
from ..core._moments import reduce_moments_about_zero
from ..core._public import public
from ..core._residuals import rematerialized
from ._operands import affine, operands, root
from ._recipe import Affine, Call, State, scale_and_bias


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
    """GRN: makes each channel stronger the more it has of what all channels of the example have.

        g = ‖x‖₂ (of each channel)        y = x + x · g / (mean g + ε) · scale + bias

    The length is over all axes but the first, which is the batch, and ``feature_axes``; the mean over those.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        scale: γ, of the shape of ``feature_axes``; None is 1. Training starts from 0, where y is x.
        bias: β, likewise; None is 0.
        feature_axes: the axes of the channels.
        epsilon: ε, added to the mean length; zero or positive.
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no length.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: ``feature_axes`` has the first axis, or another argument cannot be; the message says
            what must hold and what to do.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[[3.0, 1.0], [-3.0, 1.0]]])  # an example of two channels, one thrice the other
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
    return (o.x + affine(o.x * share, *o.parameters)).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class GlobalResponseNormRecipe(Affine):
    """A layer of `global_response_norm`."""

    epsilon: float = 1e-6
    """Added to the mean length."""
    scale_init: Initializer = initializers.zeros
    """Initializer of the scale: at first the layer changes nothing."""

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Without state."""
        y = global_response_norm(
            x,
            *scale_and_bias(variables),
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=call.mask,
            dtype=self.dtype,
        )
        return y, {}
