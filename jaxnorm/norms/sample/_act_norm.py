"""Activation normalization for flows (Kingma and Dhariwal, 2018, https://arxiv.org/abs/1807.03039)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._axes import Axes, canonical_axes, complement, size_of
from ...core._moments import moments
from ...core._residuals import rematerialized_if_differentiated
from ...core.calling._arguments import checked
from ...core.calling._explained import explained
from ...core.calling._public import public
from .._shared._prepare import operands
from .._shared._recipe import Call, Parameter, Recipe, Shape, State


@public
@rematerialized_if_differentiated
def act_norm(
    x: jax.Array,
    log_scale: jax.Array,
    bias: jax.Array,
    *,
    feature_axes: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """ActNorm: an invertible affine map of each channel, with its log-determinant.

        y = (x + bias) · exp(log_scale)        log |det ∂y/∂x| = positions · Σ log_scale

    No statistics are computed. `init_act_norm` returns parameters that normalize the first batch.

    Args:
        x: activations of any integer or floating dtype, batch axis first; computed in float32 or wider.
        log_scale: logarithm of the scale, with the shape of the feature axes.
        bias: added before scaling, with the shape of the feature axes.
        feature_axes: the channel axes: -1 for channels last, 1 for channels first.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as 0.
        dtype: dtype of ``y``; None means the dtype that ``x`` and the parameters promote to.

    Returns:
        ``y``, with the shape of ``x``, and the log-determinant per example, which is the same for every
        example: shape (), float32 or wider. `act_norm_inverse` computes ``y · exp(-log_scale) - bias``, the
        inverse.

    Raises:
        ValueError: If a shape, axis or dtype is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 2 * jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
        >>> y, log_det = jn.act_norm(x, *jn.init_act_norm(x))
        >>> print(y.std().round(3), jnp.allclose(log_det, -16 * jnp.log(x.std((0, 1, 2))).sum()))
        1.0 True
    """
    given = {"log_scale": log_scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask)
    wide_log_scale, wide_bias = o.parameters
    positions = size_of(o.x, complement(tuple({0, *o.features}), o.x.ndim))
    y = (o.x + wide_bias) * jnp.exp(wide_log_scale)
    return y.astype(o.dtype), positions * wide_log_scale.sum()


@public
def act_norm_inverse(
    y: jax.Array,
    log_scale: jax.Array,
    bias: jax.Array,
    *,
    feature_axes: Axes = -1,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Inverts `act_norm`.

        x = y · exp(-log_scale) - bias

    Args:
        y: output of `act_norm`, of any integer or floating dtype; computed in float32 or wider.
        log_scale: logarithm of the scale, with the shape of the feature axes.
        bias: subtracted after scaling, with the shape of the feature axes.
        feature_axes: the channel axes.
        dtype: dtype of the result; None means the dtype that ``y`` and the parameters promote to.

    Returns:
        ``x``, with the shape of ``y``.

    Raises:
        ValueError: If a shape, axis or dtype is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> log_scale, bias = jnp.array([0.5]), jnp.array([3.0])
        >>> y, _ = jn.act_norm(jnp.array([[7.0]]), log_scale, bias)
        >>> print(jn.act_norm_inverse(y, log_scale, bias).round())
        [[7.]]
    """
    given = {"log_scale": log_scale, "bias": bias}
    o = operands(y, given, feature_axes=feature_axes, dtype=dtype)
    wide_log_scale, wide_bias = o.parameters
    return (o.x * jnp.exp(-wide_log_scale) - wide_bias).astype(o.dtype)


@explained
@checked
def init_act_norm(
    x: jax.Array, *, feature_axes: Axes = -1, epsilon: float = 1e-6
) -> tuple[jax.Array, jax.Array]:
    """Returns parameters with which `act_norm` maps this batch to mean 0 and standard deviation 1.

        log_scale = -log(σ + ε)        bias = -μ

    Args:
        x: the first batch, of any integer or floating dtype.
        feature_axes: the channel axes.
        epsilon: ε, added to the standard deviation; zero or positive.

    Returns:
        ``log_scale`` and ``bias``, with the shape of the feature axes, in float32 or wider.

    Raises:
        ValueError: If an axis or ``epsilon`` is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> log_scale, bias = jn.init_act_norm(jnp.array([[1.0], [5.0]]))
        >>> print(jnp.exp(log_scale).round(3), bias)
        [0.5] [-3.]
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    reduced = complement(features, x.ndim)
    m = moments(x, reduced)
    return -jnp.log(jnp.sqrt(m.var) + epsilon).squeeze(reduced), -m.mean.squeeze(reduced)


@dataclass(kw_only=True, eq=False)
class ActNormRecipe(Recipe):
    """ActNorm (`jaxnorm.act_norm`): a learned affine map per channel. Returns only y.

    The layer starts as the identity. Set ``log_scale`` and ``bias`` to the values that `init_act_norm`
    returns for the first batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.ActNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'log_scale': (4,)}}
        >>> layer = jnx.ActNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias log_scale (2, 8, 8, 4)
    """

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``log_scale`` and ``bias``."""
        return {name: Parameter(initializers.zeros, shape) for name in ("log_scale", "bias")}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        given = variables["log_scale"], variables["bias"]
        y, _ = act_norm(x, *given, **self._options(call, act_norm))
        return y, {}
