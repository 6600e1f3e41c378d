"""Layer normalization (Ba, Kiros and Hinton, 2016, https://arxiv.org/abs/1607.06450)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, canonical_axes
from ...core._moments import reduce_moments
from ...core._pool import Moments
from ...core.calling._public import public
from .._shared._normalized_by import normalized_by
from .._shared._prepare import prepare


@public
def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    activation: str | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Layer norm: normalizes each example independently, with the statistics of its features.

        y = activation((x - μ) / sqrt(σ² + ε) · scale + bias)

    μ and σ² are computed over ``reduction_axes``; σ² divides by the number of unmasked elements.

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        reduction_axes: axes to compute the statistics over.
        feature_axes: axes along which ``scale`` and ``bias`` vary.
        epsilon: ε, added to the variance; zero or positive. (PyTorch's default is 1e-5.)
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the features are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` from ``jax.nn``, computed in the same pass;
            None applies no activation.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon or activation is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 512))
        >>> y = jn.layer_norm(x, jnp.ones(512), jnp.zeros(512))
        >>> print(jnp.abs(y.mean(-1)).max() < 1e-5, y.std(-1).round(3))
        True [1. 1. 1. 1.]
    """
    x = jnp.asarray(x)
    reduced = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    given = {"scale": scale, "bias": bias}
    p = prepare(x, given, feature_axes=feature_axes, mask=mask, dtype=dtype, activation=activation)

    def take_moments(x: jax.Array, mask: jax.Array | None, narrow: jax.Array) -> Moments:
        return reduce_moments(x, reduced, mask, axis_name, axis_index_groups, narrow=narrow)

    return normalized_by(take_moments, p, epsilon=epsilon, activation=activation)[0]
