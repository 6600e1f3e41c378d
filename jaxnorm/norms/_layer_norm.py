"""Layer normalization (Ba, Kiros and Hinton, 2016, https://arxiv.org/abs/1607.06450)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, canonical_axes
from ..core._moments import reduce_moments
from ..core._public import public
from ._normalized_by import normalized_by


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
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Layer norm: normalizes each example by itself, with the statistics of its features.

        y = (x - μ) / sqrt(σ² + ε) · scale + bias

    μ and σ² are taken over ``reduction_axes``; σ² divides by the number of values counted.

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        scale: γ, of the shape of ``feature_axes``; None is 1.
        bias: β, likewise; None is 0.
        reduction_axes: the axes to take statistics over.
        feature_axes: the axes along which ``scale`` and ``bias`` lie.
        epsilon: ε, added to the variance; zero or positive. (PyTorch's default is 1e-5.)
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map over which the features are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: a shape, axis, mask, dtype or epsilon that cannot be; the message says what must hold
            and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 512))
        >>> y = jn.layer_norm(x, jnp.ones(512), jnp.zeros(512))
        >>> print(jnp.abs(y.mean(-1)).max() < 1e-5, y.std(-1).round(3))
        True [1. 1. 1. 1.]
    """
    x = jnp.asarray(x)
    reduced = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    y, _ = normalized_by(
        lambda x, mask, narrow: reduce_moments(
            x, reduced, mask, axis_name, axis_index_groups, narrow=narrow
        ),
        x,
        scale,
        bias,
        feature_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        dtype=dtype,
    )
    return y
