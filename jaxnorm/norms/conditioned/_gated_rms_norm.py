"""Gated RMS norm of state space models (Dao and Gu, 2024, https://arxiv.org/abs/2405.21060)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._axes import Axes, broadcasts_to, one_axis
from ...core._precision import arithmetic_dtype, result_dtype
from ...core._residuals import rematerialized
from ...core.calling._public import public
from .._shared._prepare import prepare, readable
from .._shared._recipe import Call, Initializer, Parameter, Recipe, Shape, State
from ..sample._rms_norm import rms_norm


@public
@rematerialized
def gated_rms_norm(
    x: jax.Array,
    gate: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    num_groups: int = 1,
    norm_before_gate: bool = True,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Gated RMS norm: RMS norm of x, times silu of a gate.

        y = x / sqrt(mean(x²) + ε) · scale · silu(gate)

    Without ``norm_before_gate``, it is the RMS norm of x · silu(gate). Qwen3-Next normalizes before the gate,
    Mamba-2 after it. The gate is applied in float32 or wider, and only ``y`` is rounded. (The code of both in
    transformers also rounds before it multiplies by the scale.)

    Args:
        x: activations of any rank and any integer or floating dtype. Computed in float32 or wider; in
            float32, accurate if what is normalized has magnitudes between 1e-15 and 1e15.
        gate: the gate before silu, of the rank of ``x`` and broadcastable to it.
        scale: γ, with the shape of the feature axes; None means 1.
        feature_axes: the feature axes, which are reduced.
        num_groups: number of groups of consecutive features, each with its own mean square. Several groups
            need a single feature axis, and divide its size.
        norm_before_gate: whether to normalize before the gate is applied, or after.
        epsilon: ε, added to the mean square; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the mean square. A
            masked NaN or infinity affects no other element and no other gradient.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``gate`` and ``scale`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``gate`` does not broadcast to ``x``, if ``num_groups`` does not divide the number of
            features, or if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x, gate = jnp.array([[3.0, 4.0, 0.0, 0.0]]), jnp.array([[0.0, 50.0, 50.0, 50.0]])
        >>> print(jn.gated_rms_norm(x, gate, epsilon=0.0))  # silu(0) is 0, and silu(50) is 50
        [[ 0. 80.  0.  0.]]
    """
    p = prepare(x, {"scale": scale}, feature_axes=feature_axes, mask=mask, dtype=dtype)
    gate = jnp.asarray(gate)
    scale = None if scale is None else jnp.asarray(scale)
    if gate.ndim != p.x.ndim or not broadcasts_to(gate, p.x):
        raise ValueError(
            f"gate must have the rank of x, and sizes of 1 or those of x; got shape {gate.shape} for x of "
            f"shape {p.x.shape}. Project it to the features of x."
        )
    wide = arithmetic_dtype(p.x, gate, scale)
    opened = jax.nn.silu(readable(gate.astype(wide), p.mask, 0))
    y = readable(p.x.astype(wide), p.mask, 0)
    y = y if norm_before_gate else y * opened
    options: dict[str, Any] = {"epsilon": epsilon, "dtype": wide}
    if num_groups == 1:
        axes = {"reduction_axes": p.features, "feature_axes": feature_axes}
        y = rms_norm(y, scale, mask=p.mask, **axes, **options)
    else:
        axis = one_axis(feature_axes, y.ndim, "feature_axes", "which is split into groups")
        sizes = num_groups, _group_size(y.shape[axis], num_groups)
        mask = p.mask
        if mask is not None:
            mask = _split(mask, axis, (1, 1) if mask.shape[axis] == 1 else sizes)
        scale = None if scale is None else scale.reshape(sizes)
        axes = {"reduction_axes": axis + 1, "feature_axes": (axis, axis + 1)}
        y = rms_norm(_split(y, axis, sizes), scale, mask=mask, **axes, **options)
        y = y.reshape(p.x.shape)
    y_dtype = result_dtype(dtype, p.x, gate, scale)
    return (y * opened if norm_before_gate else y).astype(y_dtype)


def _group_size(features: int, num_groups: int) -> int:
    if num_groups < 1 or features % num_groups:
        raise ValueError(
            f"num_groups must divide the number of features; got {num_groups} groups of {features} features. "
            f"Choose a divisor of {features}."
        )
    return features // num_groups


def _split(a: jax.Array, axis: int, sizes: tuple[int, int]) -> jax.Array:
    """Splits ``axis`` into two axes of these sizes."""
    return a.reshape(*a.shape[:axis], *sizes, *a.shape[axis + 1 :])


@dataclass(kw_only=True, eq=False)
class GatedRMSNormRecipe(Recipe):
    """Gated RMS norm (`jaxnorm.gated_rms_norm`), called with the gate after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.GatedRMSNorm(num_groups=2)
        >>> variables = layer.init(jax.random.key(0), x, x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'scale': (4,)}}
        >>> layer = jnx.GatedRMSNorm(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> print(layer(x, x).shape)
        (2, 10, 4)
    """

    num_groups: int = 1
    """Number of groups of features, each with its own mean square."""
    norm_before_gate: bool = True
    """Whether to normalize before the gate is applied (Qwen3-Next) or after (Mamba-2)."""
    epsilon: float = 1e-6
    """Added to the mean square."""
    use_scale: bool = True
    """Whether to multiply by a learned scale."""
    scale_init: Initializer = initializers.ones
    """Initializer of the scale."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``scale``, if ``use_scale`` is set."""
        return {"scale": Parameter(self.scale_init, shape)} if self.use_scale else {}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        y = gated_rms_norm(
            x,
            call.condition,
            variables.get("scale"),
            **self._options(call, gated_rms_norm),
        )
        return y, {}
