"""Normalize and affine: the one pass that writes the output."""

import functools
import numbers

import jax
import jax.numpy as jnp
from jax import lax

from ._activation import spread_activated
from ._reduce import stored


def normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: float,
    mask: jax.Array | None = None,
    activation: str | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of ``x``, which is float32 or wider.

    Then, in the same pass, ``residual`` is added and the ``activation`` applied.

    Written as (x - c) * gain + offset with a constant c at the mean, and what mean, scale and bias do to
    the result in gain and offset alone. So the gradient of all five comes from one pass that collects Σdy
    and Σdy(x - c). Where statistics and parameters lie along different axes, as in layer norm, together
    they would be as large as x: then scale and bias are applied after, and have a pass of their own.

    ``mean``, ``var``, ``scale`` and ``bias`` have the rank of ``x``. Where ``mask`` is False, a NaN or an
    infinity is read as the mean: nothing must depend on it, and 0 * NaN would.
    """
    _check_epsilon(epsilon)
    mean = mean.astype(x.dtype)
    center = stored(lax.stop_gradient(mean))
    centered_mean = mean - center
    variance = var + epsilon
    # All values alike and no epsilon: (x - mean) is 0 and stays so.
    gain = lax.rsqrt(jnp.where(variance == 0, 1, variance)).astype(x.dtype)
    offset = stored(-gain * centered_mean)
    readable = () if mask is None else (mask, centered_mean)
    finish = functools.partial(spread_activated, activation=activation, residual=residual)
    if scale is None and bias is None:
        return finish(_affine, x, center, gain, offset, *readable)
    scale = jnp.ones_like(gain) if scale is None else scale.astype(x.dtype)
    bias = jnp.zeros_like(scale) if bias is None else bias.astype(x.dtype)
    if jnp.broadcast_shapes(gain.shape, scale.shape, bias.shape) == x.shape:
        return finish(_affine_twice, x, center, gain, offset, scale, bias, *readable)
    offset = stored(offset * scale + bias)
    return finish(_affine, x, center, stored(gain * scale), offset, *readable)


def _affine(
    x: jax.Array,
    center: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    *readable: jax.Array,
) -> tuple[jax.Array]:
    """(x - center) * gain + offset; where masked and not finite, that of the mean."""
    centered = x - center
    if readable:
        mask, centered_mean = readable
        centered = jnp.where(mask | jnp.isfinite(centered), centered, centered_mean)
    return (centered * gain + offset,)


def _affine_twice(
    x: jax.Array,
    center: jax.Array,
    gain: jax.Array,
    offset: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *readable: jax.Array,
) -> tuple[jax.Array]:
    (normalized,) = _affine(x, center, gain, offset, *readable)
    return (normalized * scale + bias,)


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
