"""What a norm that is more than normalize and affine has in hand: its arguments, checked, in order."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._arguments import check_scalar
from ..core._axes import Axes, broadcast_parameter, canonical_axes
from ..core._cpu_hints import materialize_as
from ..core._moments import broadcast_mask
from ..core._precision import arithmetic_dtype, result_dtype


class Operands(NamedTuple):
    """Everything in float32 or wider, parameters with size-1 axes where they do not lie."""

    x: jax.Array
    """``about_zero``, it is 0 where it is masked and not finite: nothing must depend on that."""
    narrow: jax.Array
    """``x`` as it lies in memory."""
    features: tuple[int, ...]
    parameters: tuple[Any, ...]
    """None where none was given."""
    mask: jax.Array | None
    dtype: jnp.dtype
    """Of the result."""


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
    """``x`` and its ``parameters`` by name, each along the feature axes or one of the ``scalars``.

    A norm that subtracts a mean is not ``about_zero``: it reads what is masked and not finite as the mean.

    Raises:
        ValueError: an axis, shape, mask or dtype cannot be.
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
    """``x``, and where it is masked and not finite ``instead``."""
    return x if mask is None else jnp.where(mask | jnp.isfinite(x), x, instead)


def affine(y: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Y · scale + bias, of what is there."""
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def root(a: jax.Array) -> jax.Array:
    """√a, with a derivative of 0 where a is 0."""
    some = a > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, a, 1)), 0)
