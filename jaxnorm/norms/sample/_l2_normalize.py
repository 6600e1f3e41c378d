"""L2 normalization: scales each vector to unit length."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, canonical_axes
from ...core._moments import reduce_moments_about_zero
from ...core._pool import Moments
from ...core._precision import arithmetic_dtype
from ...core.calling._public import public
from .._shared._normalized_by import normalized_by
from .._shared._prepare import prepare


@public
def l2_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-12,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Divides each vector by its Euclidean length.

        y = x / sqrt(Σ |x|² + ε) · scale

    A zero vector stays zero and has a finite gradient.

    Args:
        x: array of any rank and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1.
        reduction_axes: axes that a vector spans.
        feature_axes: axes along which ``scale`` varies.
        epsilon: ε, added to the squared length; zero or positive. (PyTorch's ``normalize`` divides by
            max(length, 1e-12) instead, which differs only for very short vectors.)
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the length.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the vectors are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x`` and ``scale`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype or epsilon is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
        [[0.6 0.8]
         [0.  0. ]]
    """
    x = jnp.asarray(x)
    reduced = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    p = prepare(x, {"scale": scale}, feature_axes=feature_axes, mask=mask, dtype=dtype)
    widened = arithmetic_dtype(x) != x.dtype

    def square_length(x: jax.Array, mask: jax.Array | None, _: jax.Array) -> Moments:
        m = reduce_moments_about_zero(
            x, reduced, mask, axis_name, axis_index_groups, widened=widened
        )
        return m._replace(var=m.var * jnp.maximum(m.count, 1))  # 1 if all elements are masked

    return normalized_by(square_length, p, epsilon=epsilon, about_zero=True)[0]
