"""Root mean square normalization (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, canonical_axes
from ...core._moments import reduce_moments_about_zero
from ...core._pool import Moments
from ...core._precision import arithmetic_dtype, result_dtype
from ...core.calling._arguments import is_number
from ...core.calling._public import public
from .._shared._arithmetic import plus_offset
from .._shared._normalized_by import normalized_by
from .._shared._prepare import prepare


@public
def rms_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    scale_offset: float | jax.Array = 0.0,
    scale_after_cast: bool = False,
    fraction: float = 1.0,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    activation: str | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """RMS norm: divides each example by the root mean square of its features, without subtracting the mean.

        y = activation(x / sqrt(mean |x|² + ε) · (scale_offset + scale))

    Args:
        x: activations of any rank and any integer, floating or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1.
        reduction_axes: axes to compute the mean square over.
        feature_axes: axes along which ``scale`` varies.
        epsilon: ε, added to the mean square; zero or positive. (The paper's code adds it to the root instead,
            which differs only for values as small as ε. PyTorch's ``eps=None`` is
            ``jnp.finfo(jnp.float32).eps``, or that of float64 for float64 inputs.)
        scale_offset: added to ``scale``, which is then required; use 1 for Gemma, whose scales start at 0.
        scale_after_cast: round to the dtype of ``x`` before the scale is applied, as Llama and T5 do in half
            precision. By default, only ``y`` is rounded.
        fraction: compute the mean square from this fraction of the features, taken from the start and rounded
            down: partial RMS norm (0.0625 in the paper). Values other than 1 require a single reduction axis
            and no ``axis_name``.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the features are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` from ``jax.nn``, computed in the same pass;
            None applies no activation.
        dtype: dtype of ``y``; None means the dtype that ``x`` and ``scale`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon, fraction or activation is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> print(jn.rms_norm(jnp.array([[3.0, 4.0, 0.0, 0.0]]), epsilon=0.0))
        [[1.2 1.6 0.  0. ]]
    """
    x = jnp.asarray(x)
    reduced = canonical_axes(reduction_axes, x.ndim, "reduction_axes")
    # x is not read directly from memory if it is sliced or upcast.
    partial = not (is_number(fraction) and fraction == 1)
    widened = partial or arithmetic_dtype(x) != x.dtype
    scale = None if scale is None else jnp.asarray(scale)
    y_dtype = result_dtype(dtype, x, scale)  # promotes with the given scale
    scale = plus_offset(scale, scale_offset)
    p = prepare(
        x,
        {"scale": scale},
        feature_axes=feature_axes,
        mask=mask,
        dtype=y_dtype,
        activation=activation,
    )
    if partial:
        _check_fraction(fraction, x, reduced, axis_name)

    def take_moments(x: jax.Array, mask: jax.Array | None, _: jax.Array) -> Moments:
        if partial:
            x, mask = _first(x, reduced[0], fraction), _first(mask, reduced[0], fraction)
        return reduce_moments_about_zero(
            x, reduced, mask, axis_name, axis_index_groups, widened=widened
        )

    rounds = scale_after_cast and jnp.issubdtype(x.dtype, jnp.floating)
    return normalized_by(
        take_moments,
        p,
        epsilon=epsilon,
        about_zero=True,
        activation=activation,
        round_to=x.dtype if rounds else None,
    )[0]


def _first(a: Any, axis: int, fraction: float) -> Any:
    """Returns the leading fraction of ``a`` along ``axis``."""
    if a is None or a.shape[axis] == 1:
        return a
    return lax.slice_in_dim(a, 0, _counted(a.shape[axis], fraction), axis=axis)


def _counted(features: int, fraction: float) -> int:
    """Number of features used; 0.29 of 100 is 29, although the float product is slightly less."""
    return min(features, int(features * float(fraction) * (1 + 1e-6)))


def _check_fraction(
    fraction: float, x: jax.Array, reduced: tuple[int, ...], axis_name: AxisName | None
) -> None:
    features = x.shape[reduced[0]] if reduced else 0
    in_range = is_number(fraction) and 0 < float(fraction) <= 1
    if not in_range or _counted(features, fraction) < 1:
        raise ValueError(
            f"fraction must lie in (0, 1] and select at least one feature; got fraction={fraction!r} of "
            f"{features} features. The paper uses 0.0625; 1 selects all features."
        )
    if len(reduced) != 1 or axis_name is not None:
        raise ValueError(
            f"fraction must be 1 unless there is a single reduction axis and no axis_name; got "
            f"reduction_axes={reduced} and axis_name={axis_name!r}. Leave fraction at 1."
        )
