"""Weight normalization (Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core._axes import Axes, canonical_axes, complement
from ...core._pool import abs_square
from ...core._precision import upcast
from ...core.calling._public import public
from ..sample._l2_normalize import l2_normalize


@public
def weight_norm(
    kernel: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-12,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Weight norm: separates the weights of each output into a direction and a learned length.

        w = kernel / ‖kernel‖ · scale

    ‖kernel‖ is the Euclidean length over all axes except ``feature_axes``. The gradient of a loss with
    respect to the kernel is orthogonal to the kernel: training rotates the kernel, and only ``scale`` changes
    the length of the weights.

    Args:
        kernel: weights of any rank and floating or complex dtype; computed in float32 or wider.
        scale: g, with the shape of the feature axes; None means 1. Initializing it to the lengths of the
            kernel (``jnp.linalg.norm``), as PyTorch does, leaves the layer unchanged.
        feature_axes: output axes, which are not reduced: -1 for Flax kernels, 0 for PyTorch kernels.
            () computes a single length over all axes.
        epsilon: ε, added to the squared length; zero or positive.
        dtype: dtype of the result; None means the dtype that ``kernel`` and ``scale`` promote to.

    Returns:
        Weights with the shape of ``kernel``.

    Raises:
        ValueError: If a shape, axis, dtype or epsilon is invalid.

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
    """Returns an initializer that sets the scale to ‖kernel‖, so that `weight_norm` changes nothing."""
    reduced = complement(canonical_axes(feature_axes, kernel.ndim, "feature_axes"), kernel.ndim)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jnp.sqrt(abs_square(upcast(kernel)).sum(reduced)).reshape(shape).astype(dtype)

    return init
