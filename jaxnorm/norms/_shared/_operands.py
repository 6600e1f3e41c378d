"""Checked and broadcast arguments for norms that need more than `normalized_by`."""

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import (
    Axes,
    axes_of_instances,
    broadcast_parameter,
    canonical_axes,
    complement,
)
from ...core._moments import broadcast_mask, reduce_moments
from ...core._pool import Moments
from ...core._precision import arithmetic_dtype, result_dtype
from ...core.calling._arguments import check_scalar
from ...core.lowering._cpu_hints import materialize_as, rounded


class Operands(NamedTuple):
    """The arguments of a norm, upcast to float32 or wider, with parameters broadcastable to ``x``."""

    x: jax.Array
    """With ``about_zero``, masked NaN and infinity are replaced by 0; no result may depend on them."""
    narrow: jax.Array
    """``x`` in its original dtype."""
    features: tuple[int, ...]
    parameters: tuple[Any, ...]
    """None for parameters that were not given."""
    mask: jax.Array | None
    dtype: jnp.dtype
    """Dtype of the result."""


def operands(
    x: jax.Array,
    parameters: Mapping[str, jax.Array | float | None],
    *,
    feature_axes: Axes,
    dtype: DTypeLike | None,
    mask: jax.Array | None = None,
    about_zero: bool = True,
    scalars: tuple[str, ...] = (),
) -> Operands:
    """Checks ``x`` and its named ``parameters``, each with the shape of the feature axes or scalar.

    Norms that subtract a mean pass ``about_zero=False`` and treat masked NaN and infinity as the mean.

    Raises:
        ValueError: If an axis, shape, mask or dtype is invalid.
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    for name in scalars:
        check_scalar(name, parameters[name])
    placed = {
        name: broadcast_parameter(p, x, () if name in scalars else features, name)  # pyright: ignore[reportArgumentType]
        for name, p in parameters.items()
    }
    trained = [p for p in placed.values() if p is not None]
    wide, counted = arithmetic_dtype(x, *trained), broadcast_mask(mask, x)
    result = result_dtype(dtype, x, *trained)
    narrow, x = x, x.astype(wide)
    if about_zero:
        x = readable(x, counted, 0)
    widened = (None if p is None else materialize_as(wide, p) for p in placed.values())
    return Operands(x, narrow, features, tuple(widened), counted, result)


def readable(x: jax.Array, mask: jax.Array | None, instead: jax.Array | int) -> jax.Array:
    """Returns ``x`` with masked NaN and infinity replaced by ``instead``."""
    return x if mask is None else jnp.where(mask | jnp.isfinite(x), x, instead)


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
