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
    five comes from one pass that collects Σdy and Σdy(x - c). Where statistics and parameters lie along
    different axes, as in layer norm, together they would be as large as x: then each is spread by itself.

    ``mean``, ``var``, ``scale`` and ``bias`` have the rank of ``x``. Where ``mask`` is False, a NaN or an
    infinity is read as the mean: nothing must depend on it, and 0 * NaN would.
    """
    _check_epsilon(epsilon)
    mean = mean.astype(x.dtype)
    center = _stored(lax.stop_gradient(mean), var)
    centered, centered_mean = x - center, mean - center
    readable = None if mask is None else mask | jnp.isfinite(centered)
    variance = var + epsilon
    # All values alike and no epsilon: (x - mean) is 0 and stays so.
    gain = lax.rsqrt(jnp.where(variance == 0, 1, variance)).astype(x.dtype)
    offset = _stored(-gain * centered_mean, var)
    if scale is None and bias is None:
        return _affine(centered, gain, offset, readable, centered_mean)
    scale = jnp.ones_like(gain) if scale is None else scale.astype(x.dtype)
    bias = jnp.zeros_like(scale) if bias is None else bias.astype(x.dtype)
    if jnp.broadcast_shapes(gain.shape, scale.shape, bias.shape) == x.shape:
        normalized = _affine(centered, gain, offset, readable, centered_mean)
        return _affine(normalized, scale, bias)
    offset = _stored(offset * scale + bias, var)
    return _affine(centered, gain * scale, offset, readable, centered_mean)


def _affine(
    x: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    readable: jax.Array | None = None,
    otherwise: jax.Array | None = None,
) -> jax.Array:
    """`x * gain + offset`, the small arrays spread together; where not readable, x is ``otherwise``."""
    small = (gain, offset) if readable is None else (gain, offset, otherwise)
    shape = jnp.broadcast_shapes(*(a.shape for a in small if a is not None))
    axes = tuple(i for i in range(x.ndim) if shape[i] != x.shape[i])
    small = (jnp.broadcast_to(a, shape) for a in small if a is not None)
    gain, offset, *rest = spread(*small, axes=axes, like=x)
    if readable is not None:
        x = jnp.where(readable, x, rest[0])
    return x * gain + offset


def _stored(small: jax.Array, var: jax.Array) -> jax.Array:
    """``small``, computed once and read wherever y is computed.

    A compiler computes y again in every loop that needs it, and what is small inside that loop, where a
    product and a sum may be contracted in one loop and not in another. The last bit of y then depends on
    the loop: the gradient of a maximum of y, which looks for the element that equals it, finds none. XLA
    does not compute a division twice; so this divides by a one that it cannot know to be one.
    """
    return small / jnp.where(var < 0, 2, 1).astype(small.dtype)


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
