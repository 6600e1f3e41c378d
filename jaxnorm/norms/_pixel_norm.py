"""Pixel norm (Karras et al., 2017, https://arxiv.org/abs/1710.10196)."""

from dataclasses import dataclass

import jax
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes
from ..core._public import public
from ._recipe import Call, Shared, State
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
    """Pixel norm: divides the features of each position by their root mean square. Nothing is trained.

        y = x / sqrt(mean x² + ε)

    It is RMS norm without a scale.

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        feature_axes: the axes of the features, over which the mean is taken.
        epsilon: ε, added to the mean square; zero or positive.
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map over which the features are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is that of ``x``.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: an axis, mask, dtype or epsilon that cannot be; the message says what must hold and what
            to do.

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
    """A layer of `pixel_norm`."""

    epsilon: float = 1e-8
    """Added to the mean square."""

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Without state."""
        y = pixel_norm(
            x,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=call.mask,
            dtype=self.dtype,
            **call.devices,
        )
        return y, {}
