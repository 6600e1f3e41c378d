"""Adaptive instance normalization (Huang and Belongie, 2017, https://arxiv.org/abs/1703.06868)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes, axes_of_instances, canonical_axes, complement
from ...core._moments import moments
from ...core._precision import arithmetic_dtype, result_dtype
from ...core._residuals import rematerialized
from ...core.calling._public import public
from .._shared._arithmetic import root
from .._shared._recipe import Call, Recipe, State
from ..sample._instance_norm import instance_norm
from ._modulate import modulate


@public
@rematerialized
def adain(
    x: jax.Array,
    style: jax.Array,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    style_mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """AdaIN: gives each channel of each example the mean and standard deviation that it has in ``style``.

        y = sqrt(σ_s² + ε) · (x - μ) / sqrt(σ² + ε) + μ_s

    Statistics are computed over all axes except the first (batch) axis and ``feature_axes``.
    Variances divide by the number n of positions. (The authors' code divides by n - 1, which is equivalent
    if ``x`` and ``style`` have the same number of positions.)

    Args:
        x: the content: activations of rank 2 or more and any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        style: activations with the same batch and feature sizes as ``x`` and any number of positions.
        feature_axes: axes of both inputs that are not reduced, besides the batch axis.
        epsilon: ε, added to both variances; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        style_mask: like ``mask``, but for ``style``.
        dtype: dtype of ``y``; None means the dtype that ``x`` and ``style`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``style`` does not have the examples and features of ``x``, or if another argument is
            invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x, style = jax.random.normal(jax.random.key(0), (2, 1, 16, 16, 3))
        >>> y = jn.adain(x, 5 + 3 * style)
        >>> print(jnp.allclose(y.mean((1, 2)), (5 + 3 * style).mean((1, 2)), atol=1e-4))
        True
    """
    x, style = jnp.asarray(x), jnp.asarray(style)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    kept = axes_of_instances(x, features)
    if style.ndim != x.ndim or any(style.shape[i] != x.shape[i] for i in kept):
        raise ValueError(
            f"style must have the same rank, examples and features as x; got style of shape {style.shape} "
            f"for x of shape {x.shape} with feature_axes={features}. Only the positions may differ."
        )
    m = moments(style, complement(kept, style.ndim), mask=style_mask)
    y = instance_norm(
        x,
        feature_axes=features,
        epsilon=epsilon,
        mask=mask,
        dtype=arithmetic_dtype(x, style),
    )
    y_dtype = result_dtype(dtype, x, style)
    std = root(m.var + epsilon)
    return modulate(y, std, m.mean, feature_axes=features, dtype=y_dtype)


@dataclass(kw_only=True, eq=False)
class AdaINRecipe(Recipe):
    """AdaIN (`jaxnorm.adain`): gives x the mean and standard deviation of a style that is passed after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.AdaIN()
        >>> variables = layer.init(jax.random.key(0), x, x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {}
        >>> layer = jnx.AdaIN(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, x)
        >>> print(*nnx.state(layer), y.shape)
        (2, 8, 8, 4)
    """

    epsilon: float = 1e-5
    """Added to both variances."""

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        y = adain(
            x,
            call.condition,
            **self._options(call, adain),
        )
        return y, {}
