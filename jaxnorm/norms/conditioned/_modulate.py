"""Scale and bias per example, as used by conditional and adaptive norms."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes, broadcasts_to, canonical_axes, feature_shape
from ...core._precision import arithmetic_dtype, result_dtype
from ...core._residuals import rematerialized_if_differentiated
from ...core.calling._public import public
from ...core.lowering._cpu_hints import rounded
from .._shared._arithmetic import plus_offset


@public
@rematerialized_if_differentiated
def modulate(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    scale_offset: float | jax.Array = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Applies a scale and bias per example or per element, which makes a norm conditional.

        y = x · (scale_offset + scale) + bias

    After `batch_norm`, with one table row per label, this is conditional batch norm
    (https://arxiv.org/abs/1707.00683). After `layer_norm`, with values computed from a condition, it is
    adaptive layer norm (https://arxiv.org/abs/2212.09748). After `instance_norm`, with full maps, it is SPADE
    (https://arxiv.org/abs/1903.07291).

    Args:
        x: normalized values, with examples along the first axis; computed in float32 or wider.
        scale: of shape (examples, *features), applied to all positions of an example, or of the same rank as
            ``x`` and broadcastable to it. None means 1.
        bias: same shape options as ``scale``; None means 0.
        feature_axes: the feature axes, excluding the first (batch) axis.
        scale_offset: added to ``scale``, which is then required; use 1 for computed scales that start at 0.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``scale`` or ``bias`` has a different shape, or if an axis or ``dtype`` is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> table = jnp.array([[1.0, 1.0], [10.0, 0.0]])  # scales of two classes for two features
        >>> x = jnp.ones((2, 3, 2))  # two examples with three positions
        >>> y = jn.modulate(x, table[jnp.array([0, 1])])
        >>> print(y[:, 0])
        [[ 1.  1.]
         [10.  0.]]
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    scale, bias = _of_examples(scale, x, features, "scale"), _of_examples(bias, x, features, "bias")
    wide, y_dtype = arithmetic_dtype(x, scale, bias), result_dtype(dtype, x, scale, bias)
    y, scale = x.astype(wide), plus_offset(scale, scale_offset)
    if scale is not None:
        y = y * scale.astype(wide)
    if bias is not None:
        y = rounded(y) + bias.astype(wide)
    return y.astype(y_dtype)


def _of_examples(
    parameter: jax.Array | None, x: jax.Array, features: tuple[int, ...], name: str
) -> jax.Array | None:
    """Returns ``parameter`` with size-1 axes inserted so that it broadcasts against ``x``."""
    if parameter is None:
        return None
    parameter = jnp.asarray(parameter)
    needed = (*x.shape[:1], *feature_shape(x, features))
    if 0 not in features and parameter.shape == needed:
        return parameter.reshape(
            [n if i == 0 or i in features else 1 for i, n in enumerate(x.shape)]
        )
    if parameter.ndim == x.ndim and broadcasts_to(parameter, x):
        return parameter
    raise ValueError(
        f"{name} must have one value per feature per example, or the rank of x; got {name} of shape "
        f"{parameter.shape} for x of shape {x.shape} with feature_axes={features}, which needs {needed}, or "
        f"rank {x.ndim} with each size 1 or that of x. If all examples share {name}, pass it to the norm "
        f"itself."
    )
