"""LayerScale for residual branches (Touvron et al., 2021, https://arxiv.org/abs/2103.17239)."""

from dataclasses import dataclass

import jax
from jax.typing import DTypeLike

from ...core._axes import Axes
from ...core._residuals import rematerialized
from ...core.calling._arguments import is_number
from ...core.calling._public import public
from .._shared._initial import small
from .._shared._prepare import operands
from .._shared._recipe import Call, Initializer, Parameter, Recipe, Shape, State


@public
@rematerialized
def layer_scale(
    x: jax.Array,
    scale: jax.Array,
    *,
    multiplier: float | jax.Array = 1.0,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """LayerScale: multiplies each channel by a learned number that starts near 0.

        y = x · (scale · multiplier)

    At the end of a residual branch, x + layer_scale(f(norm(x)), scale), it lets deep networks start out as
    the identity. It takes no statistics. With a multiplier, the product is learned that many times as fast
    by optimizers such as Adam, whose steps do not depend on the size of gradients. This is the scaler of
    nGPT and SimbaV2: with their ``init`` and ``scale``, initialize γ to ``scale``, and multiply it by
    ``init / scale``.

    Args:
        x: the output of a residual branch, of any rank and any integer, floating or complex dtype.
        scale: γ, with the shape of the feature axes.
        multiplier: a constant factor of γ.
        feature_axes: axes along which ``scale`` varies: -1 for channels last, 1 for channels first.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as 0, so it does
            not affect gradients.
        dtype: dtype of ``y``; None means the dtype that ``x`` and ``scale`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype or the multiplier is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.layer_scale(jnp.ones((2, 3)), jnp.array([0.1, 0.2, 0.3])))
        [[0.1 0.2 0.3]
         [0.1 0.2 0.3]]
    """
    o = operands(x, {"scale": scale}, feature_axes=feature_axes, dtype=dtype, mask=mask)
    gain = o.parameters[0]
    gain = gain if is_number(multiplier) and multiplier == 1 else gain * multiplier
    return (o.x * gain).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class LayerScaleRecipe(Recipe):
    """LayerScale (`jaxnorm.layer_scale`): multiplies each channel by a learned number that starts near 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> y, variables = jnl.LayerScale().init_with_output(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables), y.max())
        {'params': {'scale': (4,)}} 1e-05
        >>> print(jnx.LayerScale(4, rngs=nnx.Rngs(0))(x).max())
        1e-05
    """

    scale_init: Initializer = small
    """Initializer of the scale; 1e-5 by default. The paper uses 0.1 up to 18 blocks, and 1e-6 beyond 24."""

    multiplier: float | jax.Array = 1.0
    """Constant factor of the scale."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``scale``."""
        return {"scale": Parameter(self.scale_init, shape)}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Scales the input; there is no state to update."""
        return layer_scale(x, variables["scale"], **self._options(call, layer_scale)), {}
