"""Scaled weight standardization (Brock, De and Smith, 2021, https://arxiv.org/abs/2101.08692)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes, canonical_axes, complement, feature_shape, size_of
from ...core._precision import arithmetic_dtype, result_dtype
from ...core.calling._public import public
from .._shared._recipe import options_of
from .._shared._weight_recipe import Standardizing
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
    """Normalizes the weights of each output to mean 0 and length 1, which preserves activation variance.

        w = (kernel - μ) / sqrt(σ² + ε) / sqrt(fan-in) · gain

    This is `weight_standardization` with a gain that depends on the fan-in, as used in normalizer-free
    networks (NFNets, https://arxiv.org/abs/2102.06171). A separate factor compensates for the variance lost
    in the activation: in the NFNet code, 1.7139588594436646 after a relu.

    Args:
        kernel: weights of any rank and floating dtype; computed in float32 or wider.
        gain: learned scale, with the shape of the feature axes; None means 1.
        feature_axes: output axes, which are not reduced: -1 for Flax kernels, 0 for PyTorch kernels.
        epsilon: ε, added to the variance, as in timm; zero or positive. (DeepMind's code divides by
            sqrt(max(fan-in · σ², 1e-4)).)
        dtype: dtype of the result; None means the dtype that ``kernel`` and ``gain`` promote to.

    Returns:
        Weights with the shape of ``kernel``.

    Raises:
        ValueError: If a shape, axis, dtype or epsilon is invalid.

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
    gain = None if gain is None else jnp.asarray(gain)
    result, wide = result_dtype(dtype, kernel, gain), arithmetic_dtype(kernel, gain)
    gain = jnp.ones(feature_shape(kernel, features)) if gain is None else gain
    return weight_standardization(
        kernel,
        gain.astype(wide) / math.sqrt(max(fan_in, 1)),
        feature_axes=features,
        epsilon=epsilon,
        dtype=result,
    )


@dataclass(kw_only=True, eq=False)
class ScaledWeightStandardizationRecipe(Standardizing):
    """`jaxnorm.scaled_weight_standardization` of the kernels of the wrapped layer or model.

    The parameters keep their paths and values. Each gain is a parameter of its own, named after the path of
    its weight; the networks of the paper learn it (``use_gain=True``).

    Example:
        >>> import jax
        >>> from flax import linen as nn, nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = 5 * jax.random.normal(jax.random.key(0), (1000, 64))
        >>> y, _ = jnl.ScaledWeightStandardization(nn.Dense(32)).init_with_output(jax.random.key(1), x)
        >>> print(y.std().round(0))
        5.0
        >>> layer = jnx.ScaledWeightStandardization(nnx.Linear(64, 32, rngs=nnx.Rngs(0)))
        >>> print(layer(x).std().round(0))
        5.0
    """

    epsilon: float = 1e-6
    """Added to the variance."""

    def _changed(self, weight: jax.Array, gain: jax.Array | None) -> jax.Array:
        """Standardizes the weight."""
        return scaled_weight_standardization(
            weight, gain, **options_of(self, scaled_weight_standardization)
        )
