"""Root mean square normalization (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._arguments import is_number
from ..core._axes import Axes, canonical_axes
from ..core._moments import reduce_moments_about_zero
from ..core._pool import Moments
from ..core._precision import arithmetic_dtype, result_dtype
from ..core._public import public
from ._modulate import plus_offset
from ._normalized_by import normalized_by


@public
def rms_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    scale_offset: float | jax.Array = 0.0,
    fraction: float = 1.0,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """RMS norm: divides each example by the root mean square of its features; no mean is subtracted.

        y = x / sqrt(mean |x|² + ε) · (scale_offset + scale)

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        scale: γ, of the shape of ``feature_axes``; None is 1.
        reduction_axes: the axes to take the mean square over.
        feature_axes: the axes along which ``scale`` lies.
        epsilon: ε, added to the mean square; zero or positive. (PyTorch's ``eps=None`` is
            ``jnp.finfo(jnp.float32).eps``, in float64 that of float64.)
        scale_offset: added to ``scale``, which it needs: 1 for the 1 + scale of Gemma, which starts at 0.
        fraction: the mean square is that of so much of the features, the first ones, rounded down: partial
            RMS norm, with 0.0625 in the paper. Then there is one reduction axis, and no ``axis_name``.
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map over which the features are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x`` and ``scale`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: a shape, axis, mask, dtype, epsilon or fraction that cannot be; the message says what must
            hold and what to do.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.rms_norm(jnp.array([[3.0, 4.0, 0.0, 0.0]]), epsilon=0.0))
        [[1.2 1.6 0.  0. ]]
    """
    x = jnp.asarray(x)
    reduced = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    # Not as it lies in memory, if it is a part of it or upcast.
    partial = not (is_number(fraction) and fraction == 1)
    widened = partial or arithmetic_dtype(x) != x.dtype
    scale = None if scale is None else jnp.asarray(scale)
    y_dtype = result_dtype(dtype, x, scale)  # of the scale as it was given
    scale = plus_offset(scale, scale_offset)
    if partial:
        _check_fraction(fraction, x, reduced, axis_name)

    def take_moments(x: jax.Array, mask: jax.Array | None, _: jax.Array) -> Moments:
        if partial:
            x, mask = _first(x, reduced[0], fraction), _first(mask, reduced[0], fraction)
        return reduce_moments_about_zero(
            x, reduced, mask, axis_name, axis_index_groups, widened=widened
        )

    y, _ = normalized_by(
        take_moments,
        x,
        scale,
        None,
        feature_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        dtype=y_dtype,
        about_zero=True,
    )
    return y


def _first(a: Any, axis: int, fraction: float) -> Any:
    """So much of what lies along ``axis``, from its beginning."""
    if a is None or a.shape[axis] == 1:
        return a
    return lax.slice_in_dim(a, 0, _counted(a.shape[axis], fraction), axis=axis)


def _counted(features: int, fraction: float) -> int:
    """How many of the features; 29 of 100 for 0.29, which as a float is a little less."""
    return min(features, int(features * float(fraction) * (1 + 1e-6)))


def _check_fraction(
    fraction: float, x: jax.Array, reduced: tuple[int, ...], axis_name: AxisName | None
) -> None:
    features = x.shape[reduced[0]] if reduced else 0
    in_range = is_number(fraction) and 0 < float(fraction) <= 1
    if not in_range or _counted(features, fraction) < 1:
        raise ValueError(
            f"fraction must lie in (0, 1], and leave a feature; got fraction={fraction!r} of {features} "
            f"features. 0.0625 is that of the paper, 1 takes all."
        )
    if len(reduced) != 1 or axis_name is not None:
        raise ValueError(
            f"fraction counts the features along one axis of one device; got reduction_axes={reduced} and "
            f"axis_name={axis_name!r}. Leave it at 1."
        )
