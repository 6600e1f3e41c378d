"""The steps shared by activation norms, given a function that computes the moments."""

from collections.abc import Callable
from typing import TypeAlias

import jax
from jax.typing import DTypeLike

from ...core._normalize import normalize
from ...core._pool import Moments
from ...core._precision import upcast
from ...core._residuals import rematerialized
from ._prepare import Prepared

# Takes x in float32 or wider, the boolean mask with the rank of x, and x in its original dtype.
TakeMoments: TypeAlias = Callable[[jax.Array, jax.Array | None, jax.Array], Moments]


def normalized_by(
    take_moments: TakeMoments,
    p: Prepared,
    *,
    epsilon: float,
    about_zero: bool = False,
    activation: str | None = None,
    round_to: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Normalizes ``p.x`` with the moments that ``take_moments`` computes; returns the result and the moments.

    With ``about_zero``, no mean is subtracted, and `normalize` may ``round_to`` a dtype. ``p.residual`` is
    added to the result, and then ``activation`` is applied. ``p.x`` is saved for the backward pass in its own
    dtype.
    """

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
            round_to=round_to,
        )
        return y.astype(p.dtype), m

    scale, bias = p.parameters.get("scale"), p.parameters.get("bias")
    return norm(p.x, scale, bias, p.mask, p.residual)
