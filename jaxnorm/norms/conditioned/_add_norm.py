"""The norms of a residual stream: the sum of a branch and the stream, and the norm of that sum."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._axes import Axes
from ...core._derivative_of import with_derivative_of
from ...core._portable import is_portable
from ...core._precision import promoted_dtype, rounded_to, upcast
from ...core.calling._public import public
from .._shared._recipe import (
    Affine,
    Call,
    Initializer,
    Parameter,
    Recipe,
    Shape,
    State,
    scale_and_bias,
)
from ..sample._layer_norm import layer_norm
from ..sample._rms_norm import rms_norm


@public
def add_rms_norm(
    x: jax.Array,
    residual: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    scale_offset: float | jax.Array = 0.0,
    scale_after_cast: bool = False,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Adds a branch to the residual stream, and returns the RMS norm of the sum and the sum.

        sum = x + residual        y = sum / sqrt(mean |sum|² + ε) · (scale_offset + scale)

    In a transformer with pre-norm, the next branch reads ``y``, and ``sum`` is the new residual stream. The
    norm is that of the rounded sum, also where a compiler would pass it on unrounded. Only ``sum`` is saved
    for the backward pass. For further options, pass the sum to `rms_norm`.

    Args:
        x: output of a branch, of any rank and any integer, floating or complex dtype. The norm is computed in
            float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        residual: the residual stream, with the shape of ``x``. (`batch_norm` adds its ``residual`` after the
            norm.)
        scale: γ, with the shape of the feature axes; None means 1.
        feature_axes: the feature axes, which are reduced.
        epsilon: ε, added to the mean square; zero or positive.
        scale_offset: added to ``scale``, which is then required; use 1 for Gemma, whose scales start at 0.
        scale_after_cast: round to the dtype of the sum before the scale is applied, as Llama and T5 do in
            half precision.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the mean square.
        dtype: dtype of ``y``; None means the dtype that the sum and ``scale`` promote to.

    Returns:
        ``y`` and the sum, with the shape of ``x``. The sum has the dtype that ``x`` and ``residual`` promote
        to.

    Raises:
        ValueError: If the shapes of ``x`` and ``residual`` differ, or if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x, residual = jnp.array([[1.0, 3.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
        >>> y, stream = jn.add_rms_norm(x, residual, epsilon=0.0)
        >>> print(y, stream)
        [1.2 1.6 0.  0. ] [3. 4. 0. 0.]
    """
    total = _sum(x, residual)
    y = rms_norm(
        total,
        scale,
        reduction_axes=feature_axes,
        feature_axes=feature_axes,
        epsilon=epsilon,
        scale_offset=scale_offset,
        scale_after_cast=scale_after_cast,
        mask=mask,
        dtype=dtype,
    )
    return y, total


@public
def add_layer_norm(
    x: jax.Array,
    residual: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Adds a branch to the residual stream, and returns the layer norm of the sum and the sum.

        sum = x + residual        y = (sum - μ) / sqrt(σ² + ε) · scale + bias

    This is `add_rms_norm` with `layer_norm`. For post-norm, use only ``y``.

    Args:
        x: output of a branch, of any rank and any integer, floating or complex dtype. The norm is computed in
            float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        residual: the residual stream, with the shape of ``x``.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: the feature axes, which are reduced.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        dtype: dtype of ``y``; None means the dtype that the sum, ``scale`` and ``bias`` promote to.

    Returns:
        ``y`` and the sum, with the shape of ``x``. The sum has the dtype that ``x`` and ``residual`` promote
        to.

    Raises:
        ValueError: If the shapes of ``x`` and ``residual`` differ, or if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> y, stream = jn.add_layer_norm(jnp.array([1.0, 3.0]), jnp.array([2.0, 4.0]), epsilon=0.0)
        >>> print(y, stream)
        [-1.  1.] [3. 7.]
    """
    total = _sum(x, residual)
    y = layer_norm(
        total,
        scale,
        bias,
        reduction_axes=feature_axes,
        feature_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        dtype=dtype,
    )
    return y, total


def _sum(x: jax.Array, residual: jax.Array) -> jax.Array:
    """Returns x + residual, rounded to the dtype that they promote to."""
    x, residual = jnp.asarray(x), jnp.asarray(residual)
    if x.shape != residual.shape:
        raise ValueError(
            f"residual must have the shape of x; got {residual.shape} for x of shape {x.shape}. It is added "
            f"elementwise, before the norm: broadcast it or project it to that shape."
        )
    dtype = promoted_dtype(x, residual)
    total = x.astype(dtype) + residual.astype(dtype)
    is_wide = not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits >= 32
    if is_wide or is_portable():
        return total
    # XLA would add in float32 and pass the sum on to the norm as it is. Both of these prevent it, but a
    # barrier takes another kernel on a TPU, and rounding a second addition on a GPU.
    barrier = lax.optimization_barrier
    stored = lax.platform_dependent(
        total,
        cuda=barrier,
        rocm=barrier,
        default=lambda total: rounded_to(dtype, upcast(total)).astype(dtype),
    )
    return with_derivative_of([stored], [total])[0]


@dataclass(kw_only=True, eq=False)
class AddRMSNormRecipe(Recipe):
    """RMS norm of a sum (`jaxnorm.add_rms_norm`): called with the residual stream after x; returns both.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = stream = jnp.ones((2, 10, 4))
        >>> layer = jnl.AddRMSNorm()
        >>> variables = layer.init(jax.random.key(0), x, stream)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'scale': (4,)}}
        >>> layer = jnx.AddRMSNorm(4, rngs=nnx.Rngs(0))
        >>> y, stream = layer(x, stream)
        >>> print(y.shape, stream[0, 0])
        (2, 10, 4) [2. 2. 2. 2.]
    """

    epsilon: float = 1e-6
    """Added to the mean square."""
    scale_offset: float | jax.Array = 0.0
    """Added to the scale. For Gemma's 1 + scale, use 1 with a ``scale_init`` of zeros."""
    scale_after_cast: bool = False
    """Whether to round to the dtype of the sum before the scale is applied, as Llama and T5 do."""
    use_scale: bool = True
    """Whether to multiply by a learned scale."""
    scale_init: Initializer = initializers.ones
    """Initializer of the scale."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``scale``, if ``use_scale`` is set."""
        return {"scale": Parameter(self.scale_init, shape)} if self.use_scale else {}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Returns (y, sum); there is no state to update."""
        scale, options = variables.get("scale"), self._options(call, add_rms_norm)
        return add_rms_norm(x, call.condition, scale, **options), {}


@dataclass(kw_only=True, eq=False)
class AddLayerNormRecipe(Affine):
    """Layer norm of a sum (`jaxnorm.add_layer_norm`): called with the residual stream after x; returns both.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = stream = jnp.ones((2, 10, 4))
        >>> layer = jnl.AddLayerNorm()
        >>> variables = layer.init(jax.random.key(0), x, stream)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.AddLayerNorm(4, rngs=nnx.Rngs(0))
        >>> y, stream = layer(x, stream)
        >>> print(y.shape, stream[0, 0])
        (2, 10, 4) [2. 2. 2. 2.]
    """

    epsilon: float = 1e-6
    """Added to the variance."""

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Returns (y, sum); there is no state to update."""
        affine, options = scale_and_bias(variables), self._options(call, add_layer_norm)
        return add_layer_norm(x, call.condition, *affine, **options), {}
