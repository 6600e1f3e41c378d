"""`LocalResponseNorm` as an NNX module."""

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from ..core._axes import Axes
from ..core.calling._explained import explained
from ..norms.sample._local_response_norm import local_response_norm
from ._transformable import transformable


class LocalResponseNorm(nnx.Module):
    """Local response norm as in PyTorch. Computes `jaxnorm.local_response_norm` and has no variables.

    Args:
        num_features: ignored; accepted so that this layer can replace other norms.
        size: number of channels in the window.
        alpha: the weight of the mean square over the window.
        beta: the exponent.
        k: added to the weighted mean square.
        dtype: dtype of the result; None is the dtype of the input.
        feature_axes: the channel axis: -1 for channels last, 1 for channels first.
        rngs: ignored; accepted for the same reason.

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
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: ignored; accepted so that this layer can replace batch norm.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.local_response_norm`.
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
