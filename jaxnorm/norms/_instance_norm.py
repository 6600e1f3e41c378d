"""Instance normalization (Ulyanov, Vedaldi and Lempitsky, 2016, https://arxiv.org/abs/1607.08022)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._axes import Axes, canonical_axes, complement
from ..core._moments import reduce_moments
from ..core._sync import AxisIndexGroups, AxisName
from ._normalized_by import normalized_by


def instance_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Instance norm: normalizes each channel of each example by itself.

        y = (x - μ) / sqrt(σ² + ε) · scale + bias

    μ and σ² are taken over all axes but the first, which is the batch, and ``feature_axes``.

    Args:
        x: activations of rank 2 or more and any integer, floating or complex dtype.
            Statistics and arithmetic are in float32 or wider.
        scale: γ, of the shape of ``feature_axes``; None is 1.
        bias: β, likewise; None is 0.
        feature_axes: the axes that are kept besides the first.
        epsilon: ε, added to the variance; zero or positive. (PyTorch's default is 1e-5.)
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map over which positions are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: ``feature_axes`` has the first axis, or another argument cannot be; the message says
            what must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
        >>> y = jn.instance_norm(x)
        >>> print(y.std((1, 2)).round(3))
        [[1. 1. 1.]
         [1. 1. 1.]]
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch "
            f"axis. Got feature_axes={feature_axes!r} for x of shape {x.shape}; move the batch there."
        )
    reduced = complement((0, *features), x.ndim)
    y, _ = normalized_by(
        lambda x, mask: reduce_moments(x, reduced, mask, axis_name, axis_index_groups),
        x,
        scale,
        bias,
        feature_axes=features,
        epsilon=epsilon,
        mask=mask,
        dtype=dtype,
    )
    return y
