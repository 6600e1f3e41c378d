"""Dynamic tanh (Zhu et al., 2025, https://arxiv.org/abs/2503.10622)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes
from ...core._residuals import rematerialized_if_differentiated
from ...core.calling._public import public
from .._shared._arithmetic import affine
from .._shared._initial import half
from .._shared._prepare import operands
from .._shared._recipe import Affine, Call, Initializer, Parameter, Shape, State, scale_and_bias


@public
@rematerialized_if_differentiated
def dynamic_tanh(
    x: jax.Array,
    alpha: jax.Array | float = 0.5,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """DyT: squashes each element independently, replacing layer norm without computing statistics.

        y = tanh(α x) · scale + bias

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        alpha: α, a learned scalar shared by all features.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes along which ``scale`` and ``bias`` vary.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as 0.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis or dtype is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.dynamic_tanh(jnp.array([-100.0, -0.1, 0.0, 0.1, 100.0])).round(2))
        [-1.   -0.05  0.    0.05  1.  ]
    """
    given = {"alpha": alpha, "scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask, scalars=("alpha",))
    alpha, *of_features = o.parameters
    return affine(jnp.tanh(alpha * o.x), *of_features).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class DynamicTanhRecipe(Affine):
    """Dynamic tanh (`jaxnorm.dynamic_tanh`): applies tanh instead of layer norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.DynamicTanh()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'alpha': (), 'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.DynamicTanh(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        alpha bias scale (2, 10, 4)
    """

    alpha_init: Initializer = half
    """Initializer of the scalar α."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``alpha``, then scale and bias."""
        return {"alpha": Parameter(self.alpha_init, ()), **super()._parameters(shape)}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        y = dynamic_tanh(
            x,
            variables["alpha"],
            *scale_and_bias(variables),
            **self._options(call, dynamic_tanh),
        )
        return y, {}
