"""Normalize and affine: the one pass that writes the output."""

import numbers

import jax
import jax.numpy as jnp
from jax import lax

from ._reduce import spread


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: float,
    mask: jax.Array | None = None,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of ``x``, which is float32 or wider.

    Written as (x - c) * gain + offset with a constant c at the mean, and what mean, scale and bias do to
    the result in gain and offset alone. These are small, and spread together; so the gradient of all
    five comes from one pass that collects Σdy and Σdy(x - c).

    ``mean``, ``var``, ``scale`` and ``bias`` have the rank of ``x``. Where ``mask`` is False, a NaN or an
    infinity is read as the mean: nothing must depend on it, and 0 * NaN would.
    """
    _check_epsilon(epsilon)
    mean = mean.astype(x.dtype)
    center = lax.stop_gradient(mean)
    gain = lax.rsqrt(var + epsilon).astype(x.dtype)
    if scale is not None:
        gain = gain * scale.astype(x.dtype)
    offset = gain * (center - mean)
    if bias is not None:
        offset = offset + bias.astype(x.dtype)
    shape = jnp.broadcast_shapes(gain.shape, offset.shape)
    small = [jnp.broadcast_to(a, shape) for a in (gain, offset, mean - center)]
    axes = tuple(i for i in range(x.ndim) if shape[i] != x.shape[i])
    centered = x - center
    if mask is None:
        gain, offset = spread(*small[:2], axes=axes, like=x)
    else:
        gain, offset, centered_mean = spread(*small, axes=axes, like=x)
        centered = jnp.where(mask | jnp.isfinite(centered), centered, centered_mean)
    return centered * gain + offset


def _check_epsilon(epsilon: float) -> None:
    number = isinstance(epsilon, numbers.Real)
    if not number and not (isinstance(epsilon, jax.Array) and epsilon.shape == ()):
        raise ValueError(
            f"epsilon must be one real number; got {epsilon!r}. It is added to the variance of every "
            f"feature alike: 1e-5 is usual."
        )
    if number and not float(epsilon) >= 0:
        raise ValueError(
            f"epsilon must be zero or positive; got epsilon={epsilon}. It is added to the variance "
            f"so that a constant input divides by sqrt(epsilon): 1e-5 is usual."
        )
