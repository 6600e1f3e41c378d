"""Weight normalization (Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._axes import Axes, canonical_axes, complement
from ..core._pool import abs_square
from ..core._precision import upcast
from ..core._public import public
from ._l2_normalize import l2_normalize


@public
def weight_norm(
    kernel: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-12,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Weight norm: the weights of each output as a direction, times a length of their own.

        w = kernel / ‖kernel‖ · scale

    ‖kernel‖ is the Euclidean length over all axes but ``feature_axes``. The gradient of a loss for the
    kernel is orthogonal to it, so that training turns it and ``scale`` alone changes the length.

    Args:
        kernel: weights of any rank and floating or complex dtype; the arithmetic is in float32 or wider.
        scale: g, of the shape of ``feature_axes``; None is 1. The lengths of the kernel itself
            (``jnp.linalg.norm``) leave the layer as it was, which is how PyTorch starts.
        feature_axes: the axes that are kept, those of the outputs: -1 in Flax's kernels, 0 in PyTorch's.
            () takes one length over all.
        epsilon: ε, added to the square of the length; zero or positive.
        dtype: of the result; None is what ``kernel`` and ``scale`` promote to.

    Returns:
        Weights of the shape of ``kernel``.

    Raises:
        ValueError: a shape, axis, dtype or epsilon that cannot be; the message says what must hold and
            what to do.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> kernel = jnp.array([[3.0, 0.0], [4.0, 2.0]])
        >>> print(jn.weight_norm(kernel, jnp.array([1.0, 10.0])))
        [[ 0.6  0. ]
         [ 0.8 10. ]]
    """
    kernel = jnp.asarray(kernel)
    features = canonical_axes(feature_axes, kernel.ndim, "feature_axes")
    return l2_normalize(
        kernel,
        scale,
        reduction_axes=complement(features, kernel.ndim),
        feature_axes=features,
        epsilon=epsilon,
        dtype=dtype,
    )


def kernel_lengths(kernel: jax.Array, feature_axes: Axes) -> Callable[..., jax.Array]:
    """An initializer of the scale with which `weight_norm` changes nothing: ‖kernel‖."""
    reduced = complement(canonical_axes(feature_axes, kernel.ndim, "feature_axes"), kernel.ndim)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jnp.sqrt(abs_square(upcast(kernel)).sum(reduced)).reshape(shape).astype(dtype)

    return init
