"""Pixel norm (Karras et al., 2017, https://arxiv.org/abs/1710.10196)."""

from dataclasses import dataclass

import jax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes
from ...core.calling._public import public
from .._shared._recipe import Call, Shared, State
from ._rms_norm import rms_norm


@public
def pixel_norm(
    x: jax.Array,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-8,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Pixel norm: divides the features of each position by their root mean square.

        y = x / sqrt(mean x² + ε)

    This is RMS norm without learned parameters.

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        feature_axes: the feature axes, which are reduced.
        epsilon: ε, added to the mean square; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the features are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype of ``x``, or float32 for integers.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If an axis, mask, dtype or epsilon is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.pixel_norm(jnp.array([[3.0, 4.0, 0.0, 0.0]])))
        [[1.2 1.6 0.  0. ]]
    """
    return rms_norm(
        x,
        reduction_axes=feature_axes,
        feature_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


@dataclass(kw_only=True, eq=False)
class PixelNormRecipe(Shared):
    """Pixel norm (`jaxnorm.pixel_norm`): RMS norm without a scale.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.PixelNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {}
        >>> layer = jnx.PixelNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        (2, 8, 8, 4)
    """

    epsilon: float = 1e-8
    """Added to the mean square."""

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        y = pixel_norm(
            x,
            **self._options(call, pixel_norm),
        )
        return y, {}
