"""Scaled weight standardization (Brock, De and Smith, 2021, https://arxiv.org/abs/2101.08692)."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._axes import Axes, canonical_axes, complement, feature_shape, size_of
from ..core._precision import arithmetic_dtype, result_dtype
from ..core._public import public
from ._weight_standardization import weight_standardization


@public
def scaled_weight_standardization(
    kernel: jax.Array,
    gain: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Weights of each output with mean 0 and length 1, so that the variance of activations is kept.

        w = (kernel - μ) / sqrt(σ² + ε) / sqrt(fan-in) · gain

    It is `weight_standardization` with a gain that knows the fan-in: the norm of networks without norms
    (NFNets, https://arxiv.org/abs/2102.06171). What the activation takes from the variance is put back by a
    factor of its own: 1.7139588594436646 after a relu, in their code.

    Args:
        kernel: weights of any rank and floating dtype; the arithmetic is in float32 or wider.
        gain: of the shape of ``feature_axes``; None is 1.
        feature_axes: the axes that are kept, those of the outputs: -1 in Flax's kernels, 0 in PyTorch's.
        epsilon: ε, added to the variance, as in timm; zero or positive. (DeepMind's divides by
            sqrt(max(fan-in · σ², 1e-4)).)
        dtype: of the result; None is what ``kernel`` and ``gain`` promote to.

    Returns:
        Weights of the shape of ``kernel``.

    Raises:
        ValueError: a shape, axis, dtype or epsilon that cannot be; the message says what must hold and
            what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> kernel = 3 + jax.random.normal(jax.random.key(0), (3, 3, 16, 2))
        >>> w = jn.scaled_weight_standardization(kernel)
        >>> print(jnp.abs(w.sum((0, 1, 2))) < 1e-5, (w**2).sum((0, 1, 2)).round(3))
        [ True  True] [1. 1.]
    """
    kernel = jnp.asarray(kernel)
    features = canonical_axes(feature_axes, kernel.ndim, "feature_axes")
    fan_in = size_of(kernel, complement(features, kernel.ndim))
    result, wide = result_dtype(dtype, kernel, gain), arithmetic_dtype(kernel, gain)
    one = jnp.ones(feature_shape(kernel, features)) if gain is None else jnp.asarray(gain)
    return weight_standardization(
        kernel,
        one.astype(wide) / math.sqrt(max(fan_in, 1)),
        feature_axes=features,
        epsilon=epsilon,
        dtype=result,
    )
