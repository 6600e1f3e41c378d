"""Dynamic tanh (Zhu et al., 2025, https://arxiv.org/abs/2503.10622)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ..core._axes import Axes
from ..core._public import public
from ..core._residuals import rematerialized_if_differentiated
from ._initial import half
from ._operands import affine, operands
from ._recipe import Affine, Call, Parameter, Shape, State, scale_and_bias


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
    """DyT: squashes each value by itself, in the place of layer norm; there are no statistics.

        y = tanh(α x) · scale + bias

    Args:
        x: activations of any rank and any integer or floating dtype; the arithmetic is in float32 or wider.
        alpha: α, one number for all features, which is trained.
        scale: γ, of the shape of ``feature_axes``; None is 1.
        bias: β, likewise; None is 0.
        feature_axes: the axes along which ``scale`` and ``bias`` lie.
        mask: True counts. Boolean or integer, broadcastable to ``x``; a masked NaN or infinity is read as 0.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: a shape, axis or dtype that cannot be; the message says what must hold and what to do.

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
    """A layer of `dynamic_tanh`."""

    alpha_init: Initializer = half
    """Initializer of α, a scalar."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """α first."""
        return {"alpha": Parameter(self.alpha_init, ()), **super().parameters(shape)}

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Without state."""
        y = dynamic_tanh(
            x,
            variables["alpha"],
            *scale_and_bias(variables),
            feature_axes=self.feature_axes,
            mask=call.mask,
            dtype=self.dtype,
        )
        return y, {}
