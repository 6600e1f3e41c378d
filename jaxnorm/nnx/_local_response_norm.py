"""`LocalResponseNorm` as an NNX module."""

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from ..core._axes import Axes
from ..core._explained import explained
from ..norms._local_response_norm import local_response_norm
from ._transformable import transformable


class LocalResponseNorm(nnx.Module):
    """Local response norm, as PyTorch's. Computes `jaxnorm.local_response_norm`; it has no variables.

    Args:
        num_features: not read; so that it can stand where other norms do.
        size: number of neighbouring channels in a window.
        alpha: the weight of their energy.
        beta: the exponent.
        k: added to the sum.
        dtype: of the result; None is that of the input.
        feature_axes: the channel axis, one: -1 for channels last, 1 for channels first.
        rngs: not read.

    Example:
        >>> import jax
        >>> from jaxnorm import nnx as jnx
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y = jnx.LocalResponseNorm(size=5)(x)
    """

    @explained
    def __init__(
        self,
        num_features: Any = None,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        dtype: DTypeLike | None = None,
        feature_axes: Axes = -1,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k
        self.dtype = dtype
        self.feature_axes = feature_axes

    @transformable
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> jax.Array:
        """Normalizes ``x``.

        Args:
            x: activations of any rank.
            mask: True counts; broadcastable to ``x``.
            use_running_average: ignored; batch norm, which may stand here instead, reads it.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: anything that `jaxnorm.local_response_norm` refuses.
        """
        return local_response_norm(
            x,
            size=self.size,
            alpha=self.alpha,
            beta=self.beta,
            k=self.k,
            feature_axes=self.feature_axes,
            mask=mask,
            dtype=self.dtype,
        )
