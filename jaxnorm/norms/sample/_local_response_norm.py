"""Local response normalization (Krizhevsky, Sutskever and Hinton, 2012, "ImageNet classification ...")."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._axes import Axes, one_axis
from ...core._moments import broadcast_mask
from ...core._pool import abs_square
from ...core._precision import result_dtype, upcast
from ...core._residuals import rematerialized
from ...core.calling._arguments import FINITE, Number, is_integer
from ...core.calling._explained import explained
from ...core.calling._staged import staged
from ...core.lowering._cpu_hints import rounded
from .._shared._prepare import readable
from .._shared._recipe import Call, Recipe, State

_ENERGY = Number(
    "be finite and non-negative",
    lambda v: 0 <= v < math.inf,
    "x is divided by a power of k + alpha/size · Σ |x|², which must not be negative.",
)
_CONSTANTS = {"alpha": _ENERGY, "k": _ENERGY, "beta": FINITE}


@explained
def local_response_norm(
    x: jax.Array,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Local response norm: divides each channel by the energy of its neighbors.

        y = x / (k + α/size · Σ |x|²)^β

    The sum is over a window of ``size`` channels around each channel; if ``size`` is even, the window has one
    more channel before than after. Channels beyond the first and last are zero.

    Args:
        x: activations of any rank and any integer, floating or complex dtype; computed in float32 or wider.
        size: number of channels in the window.
        alpha: α. (TensorFlow and the paper do not divide α by ``size``: multiply their value by ``size``.)
        beta: β, the exponent.
        k: constant added to the sum, so that inactive regions are not amplified.
        feature_axes: the channel axis (exactly one): -1 for channels last, 1 for channels first.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the sums. Masked
            elements are still normalized, but a masked NaN or infinity is treated as 0.
        dtype: dtype of ``y``; None means the dtype of ``x``, or float32 for integers.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``size`` is less than 1, if ``alpha`` or ``k`` is negative, or if another argument is
            invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[2.0, 2.0, 0.0, 0.0, 2.0]])
        >>> print(jn.local_response_norm(x, size=3, alpha=3.0, beta=1.0, k=0.0))
        [[0.25 0.25 0.   0.   0.5 ]]
    """
    x = jnp.asarray(x)
    channel = one_axis(feature_axes, x.ndim, "feature_axes", "the channels")
    if not is_integer(size) or size < 1:
        raise ValueError(
            f"size must be a positive integer, the number of channels in the window; got {size!r}. "
            f"5 is typical."
        )
    for name, value in (("alpha", alpha), ("beta", beta), ("k", k)):
        _CONSTANTS[name].check(name, value)
    y_dtype, mask = result_dtype(dtype, x), broadcast_mask(mask, x)
    return _divided(x, mask, int(size), channel, alpha, beta, k).astype(y_dtype)


@staged
@rematerialized
def _divided(
    x: jax.Array,
    mask: jax.Array | None,
    size: int,
    channel: int,
    alpha: float,
    beta: float,
    k: float,
) -> jax.Array:
    window, padding = [1] * x.ndim, [(0, 0)] * x.ndim
    window[channel], padding[channel] = size, (size // 2, (size - 1) // 2)
    x = readable(upcast(x), mask, 0)
    counted = x if mask is None else jnp.where(mask, x, 0)
    energy = lax.reduce_window(abs_square(counted), 0.0, lax.add, window, (1,) * x.ndim, padding)
    base = k + rounded(alpha / size * energy)
    gain = jnp.where(base == 0, 1, base) ** -beta  # zeros stay zeros if k is 0
    return x * gain.astype(x.dtype)


@dataclass(kw_only=True, eq=False)
class LocalResponseNormRecipe(Recipe):
    """Local response norm (`jaxnorm.local_response_norm`) as in PyTorch. It has no variables.

    Example:
        >>> import jax
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y = jnl.LocalResponseNorm(size=5).apply({}, x)
        >>> print((jnx.LocalResponseNorm(size=5)(x) == y).all())
        True
    """

    size: int = 5
    """Number of channels in the window."""
    alpha: float = 1e-4
    """Weight of the mean square over the window."""
    beta: float = 0.75
    """The exponent."""
    k: float = 1.0
    """Added to the weighted mean square."""

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        return local_response_norm(x, **self._options(call, local_response_norm)), {}
