"""Weight standardization (Qiao et al., 2019, https://arxiv.org/abs/1903.10520)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes, canonical_axes, complement
from ...core.calling._public import public
from .._shared._recipe import options_of
from .._shared._weight_recipe import Standardizing
from ..sample._layer_norm import layer_norm


@public
def weight_standardization(
    kernel: jax.Array,
    gain: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-10,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Weight standardization: normalizes the weights of each output to mean 0 and variance 1.

        w = (kernel - μ) / sqrt(σ² + ε) · gain

    μ and σ² are computed over all axes except ``feature_axes``; σ² divides by the number n of weights. This
    is layer norm of a kernel and works well with group norm when batches are small
    (https://arxiv.org/abs/1912.11370).

    Args:
        kernel: weights of any rank and floating or complex dtype; computed in float32 or wider.
        gain: learned scale, with the shape of the feature axes; None means 1. A gain of 1/sqrt(fan-in)
            preserves activation variance (scaled weight standardization, https://arxiv.org/abs/2101.08692).
        feature_axes: output axes, which are not reduced: -1 for Flax kernels, 0 for PyTorch kernels.
        epsilon: ε, added to the variance; zero or positive. (timm's default is 1e-6. The paper adds 1e-5
            to σ, computed with n - 1.)
        dtype: dtype of the result; None means the dtype that ``kernel`` and ``gain`` promote to.

    Returns:
        Weights with the shape of ``kernel``.

    Raises:
        ValueError: If a shape, axis, dtype or epsilon is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> kernel = 3 + jax.random.normal(jax.random.key(0), (3, 3, 16, 2))
        >>> w = jn.weight_standardization(kernel)
        >>> print(jnp.abs(w.mean((0, 1, 2))) < 1e-6, w.std((0, 1, 2)).round(3))
        [ True  True] [1. 1.]
    """
    kernel = jnp.asarray(kernel)
    features = canonical_axes(feature_axes, kernel.ndim, "feature_axes")
    return layer_norm(
        kernel,
        gain,
        reduction_axes=complement(features, kernel.ndim),
        feature_axes=features,
        epsilon=epsilon,
        dtype=dtype,
    )


@dataclass(kw_only=True, eq=False)
class WeightStandardizationRecipe(Standardizing):
    """Weight standardization (`jaxnorm.weight_standardization`) of the kernels of the wrapped layer or model.

    The parameters keep their paths and values. Each gain is a parameter of its own, named after the path of
    its weight.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn, nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> layer = jnl.WeightStandardization(nn.Conv(16, (3, 3)))
        >>> y, variables = layer.init_with_output(jax.random.key(1), x)
        >>> jax.tree.map(jnp.shape, variables)["params"]
        {'layer_instance': {'bias': (16,), 'kernel': (3, 3, 3, 16)}}
        >>> layer = jnx.WeightStandardization(nnx.Conv(3, 16, (3, 3), rngs=nnx.Rngs(0)))
        >>> print(layer(x).shape)
        (4, 8, 8, 16)
    """

    epsilon: float = 1e-10
    """Added to the variance."""

    def _changed(self, weight: jax.Array, gain: jax.Array | None) -> jax.Array:
        """Standardizes the weight."""
        return weight_standardization(weight, gain, **options_of(self, weight_standardization))
