"""Lp normalization: scales each vector to unit p-norm."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._axes import Axes, canonical_axes
from ...core._precision import result_dtype, upcast
from ...core._residuals import rematerialized, saveable
from ...core.calling._arguments import is_number
from ...core.calling._public import public


@public
@rematerialized
def lp_normalize(
    x: jax.Array,
    *,
    p: float = 2.0,
    reduction_axes: Axes = -1,
    epsilon: float = 1e-12,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides each vector by its p-norm.

        y = x / max((Σ |x|ᵖ)^(1/p), ε)

    A zero vector stays zero and has a gradient of 0. For p = 2, `l2_normalize` needs fewer passes over ``x``.

    Args:
        x: array of any rank and any integer or floating dtype; computed in float32 or wider.
        p: order of the norm, at least 1; ``math.inf`` uses the largest absolute value.
        reduction_axes: axes that a vector spans.
        epsilon: ε, the smallest divisor; zero or positive.
        dtype: dtype of ``y``; None means the dtype of ``x``, or float32 for integers.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``p`` is less than 1, or if an axis or ``dtype`` is invalid.

    Example:
        >>> import math, jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([3.0, -1.5, 0.0, 1.5])
        >>> print(jn.lp_normalize(x, p=1), jn.lp_normalize(x, p=math.inf))
        [ 0.5  -0.25  0.    0.25] [ 1.  -0.5  0.   0.5]
    """
    if not is_number(p) or not p >= 1:
        raise ValueError(
            f"p must be a real number, at least 1; got {p!r}. 2 gives the Euclidean length, math.inf the "
            f"largest absolute value."
        )
    x = jnp.asarray(x)
    axes = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    wide = upcast(x)
    size = jnp.abs(wide)
    # Scale by the largest value: powers of values up to 1 do not overflow, and their sum does not underflow.
    largest = saveable(size.max(axes, keepdims=True, initial=0))
    if math.isinf(p):
        length = largest
    else:
        unit = lax.stop_gradient(jnp.where(largest > 0, largest, 1))
        total = saveable(((size / unit) ** p).sum(axes, keepdims=True))
        length = unit * jnp.where(largest > 0, total, 1) ** (1 / p)
        length = jnp.where(largest > 0, length, 0)
    some = length > 0
    y = jnp.where(some, wide / jnp.where(some, jnp.maximum(length, epsilon), 1), 0)
    return y.astype(result_dtype(dtype, x))
