"""Arithmetic that several norms share."""

import numbers

import jax
import jax.numpy as jnp
from jax import lax

from ...core._axes import axes_of_instances, complement
from ...core._moments import reduce_moments
from ...core._pool import Moments
from ...core._precision import arithmetic_dtype
from ...core.lowering._cpu_hints import rounded
from ._prepare import Operands


def moments_of_instances(o: Operands) -> Moments:
    """Returns the moments of each channel of each example over its unmasked positions."""
    positions = complement(axes_of_instances(o.x, o.features), o.x.ndim)
    return reduce_moments(o.x, positions, o.mask, None, None, narrow=o.narrow)


def affine(y: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Returns y · scale + bias, skipping a scale or bias of None."""
    y = y if scale is None else y * scale
    return y if bias is None else rounded(y) + bias


def root(a: jax.Array) -> jax.Array:
    """Returns √a, with derivative 0 where a is 0."""
    some = a > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, a, 1)), 0)


def plus_offset(scale: jax.Array | None, scale_offset: float | jax.Array) -> jax.Array | None:
    """Returns scale + scale_offset, in float32 or wider if the offset is not 0: only the result is rounded.

    Raises:
        ValueError: If ``scale`` is None but the offset is not 0.
    """
    if isinstance(scale_offset, numbers.Real) and scale_offset == 0:
        return scale
    if scale is None:
        raise ValueError(
            "scale_offset requires a scale to add it to; got an offset but no scale. Pass a scale "
            "(use_scale=True in a module), or omit scale_offset."
        )
    scale = jnp.asarray(scale)
    wide = arithmetic_dtype(scale)
    return scale.astype(wide) + jnp.asarray(scale_offset).astype(wide)


def exact_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product at highest precision: the operands are small, and some devices round them by default."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
