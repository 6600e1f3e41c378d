"""Scale norm (Nguyen and Salazar, 2019, https://arxiv.org/abs/1910.05895)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes
from ...core.calling._arguments import check_scalar
from ...core.calling._public import public
from .._shared._recipe import Call, Initializer, Parameter, Shape, Shared, State
from ._l2_normalize import l2_normalize


@public
def scale_norm(
    x: jax.Array,
    scale: jax.Array | float = 1.0,
    *,
    reduction_axes: Axes = -1,
    epsilon: float = 1e-10,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Scale norm: scales all vectors to one learned length.

        y = x / sqrt(Σ x² + ε) · g

    This is `l2_normalize` with one scale for all features, or RMS norm with a scale of g/√d for d features.

    Args:
        x: array of any rank and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: g, a scalar; initialize it to the square root of the number of features.
        reduction_axes: axes that a vector spans.
        epsilon: ε, added to the squared length; zero or positive. (The paper's code divides by
            max(length, 1e-5) instead, which differs only for very short vectors.)
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the length.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the vectors are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x`` and ``scale`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype or epsilon is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> y = jn.scale_norm(jnp.array([[3.0, 4.0], [30.0, -40.0]]), 10.0)
        >>> print(jnp.allclose(y, jnp.array([[6.0, 8.0], [6.0, -8.0]])))
        True
    """
    check_scalar("scale", scale)
    return l2_normalize(
        x,
        jnp.asarray(scale),
        reduction_axes=reduction_axes,
        feature_axes=(),
        epsilon=epsilon,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


@dataclass(kw_only=True, eq=False)
class ScaleNormRecipe(Shared):
    """Scale norm (`jaxnorm.scale_norm`): scales every vector to the same learned length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.ScaleNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'scale': ()}}
        >>> layer = jnx.ScaleNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        scale (2, 10, 4)
    """

    epsilon: float = 1e-10
    """Added to the squared length."""
    scale_init: Initializer | None = None
    """Initializer of g; None means the square root of the number of features."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``scale``, a scalar."""
        start = initializers.constant(math.sqrt(math.prod(shape)))
        return {"scale": Parameter(self.scale_init or start, ())}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        y = scale_norm(
            x,
            variables["scale"],
            reduction_axes=self.feature_axes,
            **self._options(call, scale_norm),
        )
        return y, {}
