"""`LocalResponseNorm` as a Linen module."""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from ..core._axes import Axes
from ..core.calling._explained import explaining_fields
from ..norms.sample._local_response_norm import local_response_norm
from ._variables import Checked


class LocalResponseNorm(Checked):
    """Local response norm as in PyTorch. Computes `jaxnorm.local_response_norm` and has no variables.

    Attributes:
        size: number of channels in the window.
        alpha: the weight of the mean square over the window.
        beta: the exponent.
        k: added to the weighted mean square.
        dtype: dtype of the result; None is the dtype of the input.
        feature_axes: the channel axis: -1 for channels last, 1 for channels first.

    Example:
        >>> import jax
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y = jnl.LocalResponseNorm(size=5).apply({}, x)
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    dtype: DTypeLike | None = None
    feature_axes: Axes = -1

    @nn.compact
    @explaining_fields
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
