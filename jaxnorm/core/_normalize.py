"""Normalization with scale and bias: the one pass that writes the output."""

import functools
import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ._activation import map_activated
from ._derivative_of import with_derivative_of
from ._elementwise import Elementwise
from ._inverse_root import inverse_root
from ._portable import is_portable
from ._precision import rounded_to, upcast
from .lowering._cpu_hints import materialize, materialize_as, rounded


def normalize(
    x: jax.Array,
    mean: jax.Array | None,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: float,
    mask: jax.Array | None = None,
    activation: str | None = None,
    residual: jax.Array | None = None,
    round_to: DTypeLike | None = None,
) -> jax.Array:
    """Returns (x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of ``x`` (float32 or wider).

    In the same pass, it then adds ``residual`` and applies ``activation``. A ``mean`` of None is 0. If mean
    and bias are None, ``round_to`` is a dtype to round to before ``scale`` is applied.

    If statistics and parameters have the same axes, this is computed as (x - c) * gain + offset, where c is
    the mean as a constant. Then mean, scale and bias affect the result only through gain and offset, and the
    gradients of x, mean, var, scale and bias all follow from one pass that sums dy and dy(x - c). If the axes
    differ, as in layer norm, gain and offset would be as large as x. Then scale and bias are applied last,
    and their gradients take a separate pass.

    ``mean``, ``var``, ``scale`` and ``bias`` have the rank of ``x``. Where ``mask`` is False, a NaN or an
    infinity in ``x`` is replaced by the mean: nothing may depend on it, and 0 * NaN would be NaN.
    """
    variance = upcast(var) + epsilon  # running statistics may be stored in 16 bits
    tiny = jnp.finfo(variance.dtype).tiny
    if not isinstance(epsilon, numbers.Real) or float(epsilon) < tiny:
        # If all values are equal and there is no epsilon, x - mean is 0 and stays 0.
        variance = jnp.where(variance == 0, 1, variance)
    gain = inverse_root(variance).astype(x.dtype)
    mean = None if mean is None else mean.astype(x.dtype)
    scale, bias = (None if a is None else materialize_as(x.dtype, a) for a in (scale, bias))
    residual = None if residual is None else residual.astype(x.dtype)

    def finish(f: Elementwise, *small: jax.Array) -> jax.Array:
        if mask is not None:
            f, small = (
                _where_readable(f),
                (mask, jnp.zeros_like(gain) if mean is None else mean, *small),
            )
        return map_activated(f, x, *small, activation=activation, residual=residual)

    if mean is None:
        gains = (gain,) if scale is None else (gain, scale)
        if bias is None:
            return finish(_scaled if round_to is None else _rounded_and_scaled(round_to), *gains)
        return finish(_scaled_and_shifted, *gains, bias)
    if scale is None and bias is None:
        return finish(_normalized, materialize(mean), gain)
    scale = jnp.ones_like(gain) if scale is None else scale
    bias = jnp.zeros_like(scale) if bias is None else bias
    if jnp.broadcast_shapes(gain.shape, scale.shape, bias.shape) == x.shape:
        return finish(_normalized_then_affine, materialize(mean), gain, scale, bias)
    gain = gain * scale
    if is_portable():
        # There are no constants: c is the mean and offset is the bias, but every loop would compute them.
        return finish(_affine, mean, gain, bias)
    center = materialize(lax.stop_gradient(mean))
    # It is 0, but not its derivative. As a constant, it does not need the mean again in the backward pass.
    (moved,) = with_derivative_of([jnp.zeros_like(mean)], [mean - center])
    offset = bias - gain * moved
    (offset,) = with_derivative_of([bias], [offset])
    return finish(_affine, center, gain, offset)


def _scaled(x: jax.Array, *gains: jax.Array) -> tuple[jax.Array]:
    return (functools.reduce(lax.mul, gains, x),)


@functools.cache
def _rounded_and_scaled(dtype: DTypeLike) -> Elementwise:
    """Returns `_scaled` with the first product rounded to ``dtype``."""

    def scaled(x: jax.Array, gain: jax.Array, *scales: jax.Array) -> tuple[jax.Array]:
        return _scaled(rounded_to(dtype, lax.mul(x, gain)), *scales)

    return scaled


def _scaled_and_shifted(x: jax.Array, *gains_and_bias: jax.Array) -> tuple[jax.Array]:
    *gains, bias = gains_and_bias
    return (lax.add(rounded(_scaled(x, *gains)[0]), bias),)


def _normalized(x: jax.Array, mean: jax.Array, gain: jax.Array) -> tuple[jax.Array]:
    return (lax.mul(lax.sub(x, mean), gain),)


def _normalized_then_affine(
    x: jax.Array, mean: jax.Array, gain: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array]:
    return (lax.add(rounded(lax.mul(lax.mul(lax.sub(x, mean), gain), scale)), bias),)


def _affine(
    x: jax.Array, center: jax.Array, gain: jax.Array, offset: jax.Array
) -> tuple[jax.Array]:
    return (lax.add(rounded(lax.mul(lax.sub(x, center), gain)), offset),)


@functools.cache
def _where_readable(f: Elementwise) -> Elementwise:
    """Wraps ``f`` to read the mean instead of x where x is masked and not finite."""

    def readable(x: jax.Array, mask: jax.Array, mean: jax.Array, *others: jax.Array) -> Any:
        return f(jnp.where(mask | jnp.isfinite(x), x, mean), *others)

    return readable
