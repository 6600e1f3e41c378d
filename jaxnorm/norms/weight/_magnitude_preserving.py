"""Magnitude-preserving weights of EDM2 (Karras et al., 2023, https://arxiv.org/abs/2312.02696)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes, canonical_axes, complement, size_of
from ...core._pool import abs_square
from ...core._precision import result_dtype, upcast
from ...core.calling._arguments import check_scalar
from ...core.calling._public import public
from .._shared._arithmetic import root
from .._shared._recipe import options_of
from .._shared._weight_recipe import WeightRecipe


@public
def magnitude_preserving(
    kernel: jax.Array,
    gain: jax.Array | float = 1.0,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-4,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes the weights of each output to length 1, which preserves unit variance of independent inputs.

        w = kernel / (‖kernel‖ + ε sqrt(fan-in)) · gain

    After every training step, also write back the weights normalized by `forced_magnitude`. They then neither
    grow nor shrink, and the effective learning rate stays the same throughout training.

    Args:
        kernel: weights of any rank and floating dtype; computed in float32 or wider.
        gain: scalar, or array broadcastable to ``kernel``.
        feature_axes: output axes, which are not reduced: -1 for Flax kernels, 0 for PyTorch kernels.
        epsilon: ε, added to the root mean square of the weights; zero or positive.
        dtype: dtype of the result; None means the dtype of ``kernel``.

    Returns:
        Weights with the shape of ``kernel``.

    Raises:
        ValueError: If an axis or ``dtype`` is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> kernel = 7 * jax.random.normal(jax.random.key(0), (3, 3, 16, 2))
        >>> w = jn.magnitude_preserving(kernel)
        >>> print((w**2).sum((0, 1, 2)).round(3))
        [1. 1.]
    """
    check_scalar("gain", gain)
    kernel = jnp.asarray(kernel)
    wide, length = _unit_mean_square(kernel, feature_axes, epsilon)
    gain = jnp.asarray(gain).astype(wide.dtype)
    if jnp.broadcast_shapes(gain.shape, kernel.shape) != kernel.shape:
        raise ValueError(
            f"gain must broadcast to kernel; got shape {gain.shape} for a kernel of shape {kernel.shape}. "
            f"A scalar is typical."
        )
    w = wide / length * gain
    return w.astype(result_dtype(dtype, kernel))


@public
def forced_magnitude(
    kernel: jax.Array, *, feature_axes: Axes = -1, epsilon: float = 1e-4
) -> jax.Array:
    """Normalizes the weights of each output to mean square 1, as EDM2 does after every training step.

        w = kernel / (sqrt(mean kernel²) + ε)

    Args:
        kernel: weights of any rank and floating dtype; computed in float32 or wider.
        feature_axes: output axes, which are not reduced: -1 for Flax kernels, 0 for PyTorch kernels.
        epsilon: ε, added to the root mean square of the weights; zero or positive.

    Returns:
        Weights with the shape and dtype of ``kernel``.

    Raises:
        ValueError: If an axis is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> kernel = jnp.array([[3.0], [-3.0]])
        >>> print(jn.forced_magnitude(kernel).round(3).squeeze())
        [ 1. -1.]
    """
    kernel = jnp.asarray(kernel)
    wide, length = _unit_mean_square(kernel, feature_axes, epsilon)
    features = canonical_axes(feature_axes, kernel.ndim, "feature_axes")
    fan_in = size_of(kernel, complement(features, kernel.ndim))
    return (wide / length * math.sqrt(fan_in)).astype(kernel.dtype)


def _unit_mean_square(
    kernel: jax.Array, feature_axes: Axes, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the upcast kernel and the divisor that normalizes it to length 1."""
    features = canonical_axes(feature_axes, kernel.ndim, "feature_axes")
    reduced = complement(features, kernel.ndim)
    wide = upcast(kernel)
    length = root(abs_square(wide).sum(reduced, keepdims=True))
    length = length + epsilon * math.sqrt(size_of(kernel, reduced))
    return wide, jnp.where(length == 0, 1, length)  # zeros stay zeros


@dataclass(kw_only=True, eq=False)
class MagnitudePreservingRecipe(WeightRecipe):
    """`jaxnorm.magnitude_preserving` of the kernels of the wrapped layer or model.

    The parameters keep their paths and values.

    Example:
        >>> import jax
        >>> from flax import linen as nn, nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = 5 * jax.random.normal(jax.random.key(0), (1000, 64))
        >>> y, _ = jnl.MagnitudePreserving(nn.Dense(32)).init_with_output(jax.random.key(1), x)
        >>> print(y.std().round(0))
        5.0
        >>> layer = jnx.MagnitudePreserving(nnx.Linear(64, 32, rngs=nnx.Rngs(0)))
        >>> print(layer(x).std().round(0))
        5.0
    """

    epsilon: float = 1e-4
    """Added to the root mean square of the weights."""
    feature_axes: Axes = -1
    """Output axes of a weight, which are not reduced: -1 for Flax kernels."""
    dtype: DTypeLike | None = None
    """Dtype of the new weights; None means the dtype of the weights."""

    def _changed(self, weight: jax.Array, gain: jax.Array | None) -> jax.Array:
        """Normalizes the weight."""
        return magnitude_preserving(weight, **options_of(self, magnitude_preserving))
