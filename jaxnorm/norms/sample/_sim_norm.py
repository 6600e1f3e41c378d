"""Simplicial normalization (Lavoie et al., 2022, https://arxiv.org/abs/2204.00616)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._axes import Axes, one_axis
from ...core._placement import resharded
from ...core._precision import check_real
from ...core._residuals import rematerialized_if_differentiated
from ...core.calling._public import public
from .._shared._prepare import operands
from .._shared._recipe import Call, Recipe, State


@public
@rematerialized_if_differentiated
def sim_norm(
    x: jax.Array,
    *,
    simplex_size: int = 8,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """SimNorm: a softmax within each group of features.

        y = exp(x) / Σ exp(x)        (sum over the group)

    Each group becomes a point on a simplex: positive numbers that add up to 1. TD-MPC2 ends its encoder and
    its dynamics with it, which keeps latent states bounded and sparse.

    Args:
        x: activations of any rank and any integer or floating dtype; computed in float32 or wider.
        simplex_size: features per group; must divide the number of features.
        feature_axes: the feature axis (exactly one).
        mask: boolean or integer, broadcastable to ``x``; elements where it is False get 0 and are left out
            of the sums.
        dtype: dtype of ``y``; None means the dtype of ``x``, or float32 for integers.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If there is more than one feature axis, if ``simplex_size`` does not divide its size, or
            if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.sim_norm(jnp.array([[0.0, 0.0, 9.0, -9.0]]), simplex_size=2).round(3))
        [[0.5 0.5 1.  0. ]]
    """
    check_real("sim_norm", "l2_normalize", x)
    o = operands(x, {}, feature_axes=feature_axes, dtype=dtype, mask=mask)
    channel = one_axis(feature_axes, o.x.ndim, "feature_axes", "the features")
    features = o.x.shape[channel]
    if features % simplex_size:
        raise ValueError(
            f"simplex_size must divide the number of features; got {simplex_size} for {features} features. "
            f"Choose a divisor of {features}."
        )
    # A mesh with explicit axes may split the features, but not a group.
    sharding = jax.typeof(o.x).sharding
    partitions = [*sharding.spec[:channel], None, *sharding.spec[channel + 1 :]]

    def split(a: jax.Array) -> jax.Array:
        groups = features // simplex_size, simplex_size
        shape = *o.x.shape[:channel], *groups, *o.x.shape[channel + 1 :]
        return resharded(a, sharding.mesh, *partitions).reshape(shape)

    logits, counted = split(o.x), True
    if o.mask is not None:
        counted = split(jnp.broadcast_to(o.mask, o.x.shape))
    largest = logits.max(channel + 1, keepdims=True, initial=-jnp.inf, where=counted)
    largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    powers = jnp.where(counted, jnp.exp(jnp.where(counted, logits - largest, 0)), 0)
    total = powers.sum(channel + 1, keepdims=True)
    y = powers / jnp.where(total == 0, 1, total)
    return y.reshape(o.x.shape).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class SimNormRecipe(Recipe):
    """SimNorm (`jaxnorm.sim_norm`): a softmax within each group of features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 16))
        >>> layer = jnl.SimNorm(simplex_size=4)
        >>> print(layer.apply({}, x).max())
        0.25
        >>> print(jnx.SimNorm(simplex_size=4)(x).max())
        0.25
    """

    simplex_size: int = 8
    """Features per group; must divide the number of features."""

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the softmax; there is no state to update."""
        return sim_norm(x, **self._options(call, sim_norm)), {}
