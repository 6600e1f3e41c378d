"""Scale and bias that differ from example to example: what conditional and adaptive norms have in common."""

import numbers

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._arguments import checked
from ..core._axes import Axes, canonical_axes, feature_shape
from ..core._explained import explained
from ..core._precision import arithmetic_dtype, result_dtype


@explained
@checked
def modulate(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    scale_offset: float | jax.Array = 0.0,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """An affine of each example, or each element: what makes a norm without an affine a conditional one.

        y = x · (scale_offset + scale) + bias

    After `batch_norm` with a row of a table for each label it is conditional batch norm
    (https://arxiv.org/abs/1707.00683), after `layer_norm` with values computed from a condition adaptive
    layer norm (https://arxiv.org/abs/2212.09748), after `instance_norm` with whole maps SPADE
    (https://arxiv.org/abs/1903.07291).

    Args:
        x: normalized values, the examples along the first axis; the arithmetic is in float32 or wider.
        scale: of one of the shapes (examples, *features), the same for all positions of an example; or of
            the rank of ``x``, and broadcastable to it. None is 1.
        bias: likewise; None is 0.
        feature_axes: the axes of the features, without the first.
        scale_offset: added to ``scale``, which it needs: 1 where scales are computed, and begin at 0.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: ``scale`` or ``bias`` has another shape, or an axis or ``dtype`` cannot be; the message
            says what must hold and what to do.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> table = jnp.array([[1.0, 1.0], [10.0, 0.0]])  # scales of two classes, for two features
        >>> x = jnp.ones((2, 3, 2))  # two examples of three positions
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
        y = y + bias.astype(wide)
    return y.astype(y_dtype)


def plus_offset(scale: jax.Array | None, scale_offset: float | jax.Array) -> jax.Array | None:
    """The sum, in float32 or wider if there is anything to add: what is to be rounded is the result.

    Raises:
        ValueError: there is no scale, or the offset is not one number.
    """
    if isinstance(scale_offset, numbers.Real) and scale_offset == 0:
        return scale
    if scale is None:
        raise ValueError(
            "scale_offset is added to scale; got an offset and no scale. Give one (use_scale, in a "
            "module), or leave scale_offset out."
        )
    scale = jnp.asarray(scale)
    wide = arithmetic_dtype(scale)
    return scale.astype(wide) + jnp.asarray(scale_offset).astype(wide)


def _of_examples(
    parameter: jax.Array | None, x: jax.Array, features: tuple[int, ...], name: str
) -> jax.Array | None:
    """``parameter`` with size-1 axes inserted, so that it broadcasts against ``x``."""
    if parameter is None:
        return None
    parameter = jnp.asarray(parameter)
    needed = (*x.shape[:1], *feature_shape(x, features))
    if 0 not in features and parameter.shape == needed:
        return parameter.reshape(
            [n if i == 0 or i in features else 1 for i, n in enumerate(x.shape)]
        )
    if parameter.ndim == x.ndim and all(
        m in (1, n) for m, n in zip(parameter.shape, x.shape, strict=True)
    ):
        return parameter
    raise ValueError(
        f"{name} must have a value for every feature of every example, or the rank of x; got {name} of shape "
        f"{parameter.shape} for x of shape {x.shape} with feature_axes={features}, which needs {needed}, or "
        f"rank {x.ndim} and sizes that are 1 or those of x. A {name} that all examples share is an argument "
        f"of the norm itself."
    )
