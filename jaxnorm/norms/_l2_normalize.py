"""L2 normalization: every vector at unit length."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, canonical_axes
from ..core._moments import reduce_moments_about_zero
from ..core._pool import Moments
from ..core._precision import arithmetic_dtype
from ..core._public import public
from ._normalized_by import normalized_by


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
    """Divides every vector by its Euclidean length.

        y = x / sqrt(Σ |x|² + ε) · scale

    A vector of zeros stays one, and has a finite gradient.

    Args:
        x: values of any rank and any integer, floating or complex dtype.
            Sums and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        scale: of the shape of ``feature_axes``; None is 1.
        reduction_axes: the axes along which a vector lies.
        feature_axes: the axes along which ``scale`` lies.
        epsilon: ε, added to the square of the length; zero or positive. (PyTorch's ``normalize`` divides by
            max(length, 1e-12) instead, which is the same for all but the shortest vectors.)
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no length.
        axis_name: one or several axes of vmap, pmap or shard_map over which vectors are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x`` and ``scale`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: a shape, axis, mask, dtype or epsilon that cannot be; the message says what must hold
            and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
        [[0.6 0.8]
         [0.  0. ]]
    """
    x = jnp.asarray(x)
    reduced = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    widened = arithmetic_dtype(x) != x.dtype

    def square_length(x: jax.Array, mask: jax.Array | None, _: jax.Array) -> Moments:
        m = reduce_moments_about_zero(
            x, reduced, mask, axis_name, axis_index_groups, widened=widened
        )
        return m._replace(var=m.var * jnp.maximum(m.count, 1))  # with nothing counted it is 1

    y, _ = normalized_by(
        square_length,
        x,
        scale,
        None,
        feature_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        dtype=dtype,
        about_zero=True,
    )
    return y
