"""Magnitude-preserving weights (Karras et al., 2023, https://arxiv.org/abs/2312.02696), those of EDM2."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._arguments import check_scalar
from ..core._axes import Axes, canonical_axes, complement, size_of
from ..core._pool import abs_square
from ..core._precision import result_dtype, upcast
from ..core._public import public
from ._operands import root


@public
def magnitude_preserving(
    kernel: jax.Array,
    gain: jax.Array | float = 1.0,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-4,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Weights of each output at length 1: inputs that are independent and of variance 1 give such outputs.

        w = kernel / (‖kernel‖ + ε sqrt(fan-in)) · gain

    Training also writes the normalized weights back after every step, `forced_magnitude`, so that they
    neither grow nor shrink, and the learning rate means the same throughout.

    Args:
        kernel: weights of any rank and floating dtype; the arithmetic is in float32 or wider.
        gain: one number, or of a shape that broadcasts to ``kernel``.
        feature_axes: the axes that are kept, those of the outputs: -1 in Flax's kernels, 0 in PyTorch's.
        epsilon: ε, added to the root mean square of the weights; zero or positive.
        dtype: of the result; None is that of ``kernel``.

    Returns:
        Weights of the shape of ``kernel``.

    Raises:
        ValueError: an axis or ``dtype`` that cannot be; the message says what must hold and what to do.

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
            f"One number is usual."
        )
    w = wide / length * gain
    return w.astype(result_dtype(dtype, kernel))


@public
def forced_magnitude(
    kernel: jax.Array, *, feature_axes: Axes = -1, epsilon: float = 1e-4
) -> jax.Array:
    """Weights of each output with mean square 1: what EDM2 writes back after every training step.

        w = kernel / (sqrt(mean kernel²) + ε)

    Args:
        kernel: weights of any rank and floating dtype; the arithmetic is in float32 or wider.
        feature_axes: the axes that are kept, those of the outputs.
        epsilon: ε, added to the root mean square of the weights; zero or positive.

    Returns:
        Weights of the shape and dtype of ``kernel``.

    Raises:
        ValueError: an axis that cannot be; the message says what must hold and what to do.

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
    """The kernel, wide, and what divides it to length 1."""
    features = canonical_axes(feature_axes, kernel.ndim, "feature_axes")
    reduced = complement(features, kernel.ndim)
    wide = upcast(kernel)
    length = root(abs_square(wide).sum(reduced, keepdims=True))
    length = length + epsilon * math.sqrt(size_of(kernel, reduced))
    return wide, jnp.where(length == 0, 1, length)  # zeros stay zeros
