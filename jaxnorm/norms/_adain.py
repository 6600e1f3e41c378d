"""Adaptive instance normalization (Huang and Belongie, 2017, https://arxiv.org/abs/1703.06868)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._axes import Axes, axes_of_instances, canonical_axes, complement
from ..core._moments import moments
from ..core._precision import arithmetic_dtype, result_dtype
from ..core._public import public
from ..core._residuals import rematerialized
from ._instance_norm import instance_norm
from ._modulate import modulate
from ._operands import root
from ._recipe import Call, Recipe, State


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
    """AdaIN: gives each channel of each example the mean and the standard deviation that it has in ``style``.

        y = sqrt(σ_s² + ε) · (x - μ) / sqrt(σ² + ε) + μ_s

    Statistics are over all axes but the first, which is the batch, and ``feature_axes``, and divide by the
    number of positions. (The authors' divides by one less; that is the same where ``x`` and ``style`` have
    as many positions.)

    Args:
        x: activations of rank 2 or more and any integer or floating dtype: the content.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        style: activations with the batch and the features of ``x``, of any number of positions.
        feature_axes: the axes that are kept besides the first, of both.
        epsilon: ε, added to both variances; zero or positive.
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        style_mask: of ``style``, likewise.
        dtype: of ``y``; None is what ``x`` and ``style`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: ``style`` has other examples or features, or another argument cannot be; the message says
            what must hold and what to do.

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
            f"style must have the rank, the examples and the features of x; got style of shape {style.shape} "
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
    """A layer of `adain`, called with the style after x."""

    epsilon: float = 1e-5
    """Added to both variances."""

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Without state."""
        y = adain(
            x,
            call.condition,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=call.mask,
            dtype=self.dtype,
        )
        return y, {}
