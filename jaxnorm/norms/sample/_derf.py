"""Dynamic erf (Chen et al., 2025, https://arxiv.org/abs/2512.10938)."""

from dataclasses import dataclass

import jax
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._axes import Axes
from ...core._precision import check_real
from ...core._residuals import rematerialized_if_differentiated
from ...core.calling._public import public
from .._shared._arithmetic import affine
from .._shared._initial import half
from .._shared._prepare import operands
from .._shared._recipe import Affine, Call, Initializer, Parameter, Shape, State, scale_and_bias


@public
@rematerialized_if_differentiated
def derf(
    x: jax.Array,
    alpha: jax.Array | float = 0.5,
    shift: jax.Array | float = 0.0,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Derf: squashes each element independently, replacing layer norm without computing statistics.

        y = erf(α x + s) · scale + bias

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        alpha: α, a learned scalar shared by all features.
        shift: s, a learned scalar shared by all features.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes along which ``scale`` and ``bias`` vary.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as 0.
        dtype: dtype of ``y``; None means the dtype that ``x`` and the parameters promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis or dtype is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.derf(jnp.array([-100.0, -0.1, 0.0, 0.1, 100.0])).round(2))
        [-1.   -0.06  0.    0.06  1.  ]
    """
    check_real("derf", "layer_norm", x, alpha, shift, scale, bias)
    given = {"alpha": alpha, "shift": shift, "scale": scale, "bias": bias}
    o = operands(
        x, given, feature_axes=feature_axes, dtype=dtype, mask=mask, scalars=("alpha", "shift")
    )
    alpha, shift, *of_features = o.parameters
    return affine(lax.erf(alpha * o.x + shift), *of_features).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class DerfRecipe(Affine):
    """Dynamic erf (`jaxnorm.derf`): applies erf instead of layer norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.Derf()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'alpha': (), 'bias': (4,), 'scale': (4,), 'shift': ()}}
        >>> layer = jnx.Derf(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        alpha bias scale shift (2, 10, 4)
    """

    alpha_init: Initializer = half
    """Initializer of the scalar α."""
    shift_init: Initializer = initializers.zeros
    """Initializer of the scalar s."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``alpha`` and ``shift``, then scale and bias."""
        numbers = {"alpha": Parameter(self.alpha_init, ()), "shift": Parameter(self.shift_init, ())}
        return {**numbers, **super()._parameters(shape)}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        numbers = variables["alpha"], variables["shift"]
        y = derf(
            x,
            *numbers,
            *scale_and_bias(variables),
            **self._options(call, derf),
        )
        return y, {}
