"""The arguments of a norm, checked and broadcast. Nearly all norms of activations begin here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._activation import check_activation
from ...core._axes import Axes, broadcast_parameter, canonical_axes
from ...core._moments import broadcast_mask
from ...core._precision import arithmetic_dtype, result_dtype
from ...core.calling._arguments import check_scalar
from ...core.lowering._cpu_hints import materialize_as


class Prepared(NamedTuple):
    """The arguments of a norm, each in its own dtype and with the rank of ``x``."""

    x: jax.Array
    features: tuple[int, ...]
    parameters: dict[str, jax.Array | None]
    """By name; None for those that were not given."""
    mask: jax.Array | None
    residual: jax.Array | None
    dtype: jnp.dtype
    """Dtype of the result."""


def prepare(
    x: jax.Array,
    parameters: Mapping[str, jax.Array | float | None],
    *,
    feature_axes: Axes,
    dtype: DTypeLike | None,
    mask: jax.Array | None = None,
    activation: str | None = None,
    residual: jax.Array | None = None,
    scalars: tuple[str, ...] = (),
) -> Prepared:
    """Checks ``x`` and its named ``parameters``, each with the shape of the feature axes or scalar.

    Raises:
        ValueError: If an axis, shape, mask, dtype or the activation is invalid.
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    for name in scalars:
        check_scalar(name, parameters[name])
    placed: dict[str, jax.Array | None] = {
        name: broadcast_parameter(p, x, () if name in scalars else features, name)  # pyright: ignore[reportArgumentType]
        for name, p in parameters.items()
    }
    mask = broadcast_mask(mask, x)
    residual = check_activation(activation, residual, x, *placed.values())
    result = result_dtype(dtype, x, *placed.values(), residual)
    return Prepared(x, features, placed, mask, residual, result)


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
    about_zero: bool = True,
    **options: Any,
) -> Operands:
    """Prepares the arguments of a norm that computes with more than moments, scale and bias.

    Norms that subtract a mean pass ``about_zero=False`` and treat masked NaN and infinity as the mean. The
    ``options`` are those of `prepare`.
    """
    p = prepare(x, parameters, **options)
    wide = arithmetic_dtype(p.x, *p.parameters.values())
    x = p.x.astype(wide)
    if about_zero:
        x = readable(x, p.mask, 0)
    widened = (None if a is None else materialize_as(wide, a) for a in p.parameters.values())
    return Operands(x, p.x, p.features, tuple(widened), p.mask, p.dtype)


def readable(x: jax.Array, mask: jax.Array | None, instead: jax.Array | int) -> jax.Array:
    """Returns ``x`` with masked NaN and infinity replaced by ``instead``."""
    return x if mask is None else jnp.where(mask | jnp.isfinite(x), x, instead)
