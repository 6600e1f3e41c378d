"""The steps shared by activation norms, given a function that computes the moments."""

from collections.abc import Callable
from typing import TypeAlias

import jax
from jax.typing import DTypeLike

from ...core._activation import check_activation
from ...core._axes import Axes, broadcast_parameter, canonical_axes
from ...core._moments import broadcast_mask
from ...core._normalize import normalize
from ...core._pool import Moments
from ...core._precision import result_dtype, upcast
from ...core._residuals import rematerialized

# Takes x in float32 or wider, the boolean mask with the rank of x, and x in its original dtype.
TakeMoments: TypeAlias = Callable[[jax.Array, jax.Array | None, jax.Array], Moments]


def normalized_by(
    take_moments: TakeMoments,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    feature_axes: Axes,
    epsilon: float,
    mask: jax.Array | None,
    dtype: DTypeLike | None,
    about_zero: bool = False,
    activation: str | None = None,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes ``x`` with the moments that ``take_moments`` computes; returns the result and the moments.

    With ``about_zero``, no mean is subtracted. ``residual`` is added to the result, and then ``activation``
    is applied. ``x`` is saved for the backward pass in its own dtype.
    """
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    scale, bias = (
        broadcast_parameter(scale, x, features, "scale"),
        broadcast_parameter(bias, x, features, "bias"),
    )
    mask = broadcast_mask(mask, x)
    residual = check_activation(activation, residual, x, scale, bias)
    y_dtype = result_dtype(dtype, x, scale, bias, residual)

    @rematerialized
    def norm(
        x: jax.Array,
        scale: jax.Array | None,
        bias: jax.Array | None,
        mask: jax.Array | None,
        residual: jax.Array | None,
    ) -> tuple[jax.Array, Moments]:
        narrow, x = x, upcast(x)
        m = take_moments(x, mask, narrow)
        x = upcast(x, scale, bias, residual)
        y = normalize(
            x,
            None if about_zero else m.mean,
            m.var,
            scale,
            bias,
            epsilon=epsilon,
            mask=mask,
            activation=activation,
            residual=residual,
        )
        return y.astype(y_dtype), m

    return norm(x, scale, bias, mask, residual)
