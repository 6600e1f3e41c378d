"""Adaptive layer norm (Peebles and Xie, 2022, https://arxiv.org/abs/2212.09748), of diffusion."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ..core._axes import Axes
from ..core._precision import arithmetic_dtype, result_dtype
from ..core._public import public
from ..core._residuals import rematerialized
from ._layer_norm import layer_norm
from ._modulate import modulate
from ._recipe import Call, Parameter, Recipe, Shape, State


@public
@rematerialized
def ada_layer_norm(
    x: jax.Array,
    scale: jax.Array,
    shift: jax.Array,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """AdaLN: layer norm, its scale and shift computed for each example from a condition.

        y = (x - μ) / sqrt(σ² + ε) · (1 + scale) + shift

    Args:
        x: activations (examples, ..., features) of any integer or floating dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        scale: (examples, *features), or of the rank of ``x`` and broadcastable to it.
        shift: likewise.
        feature_axes: the axes of the features, over which statistics are taken.
        epsilon: ε, added to the variance; zero or positive.
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        dtype: of ``y``; None is what ``x``, ``scale`` and ``shift`` promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: ``scale`` or ``shift`` does not fit, or another argument cannot be; the message says what
            must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jax.random.normal(jax.random.key(0), (2, 10, 64))
        >>> scale = jnp.stack([jnp.ones(64), jnp.full(64, 2.0)])
        >>> y = jn.ada_layer_norm(x, scale, jnp.zeros((2, 64)))
        >>> print(y.std((1, 2)).round(2))
        [2. 3.]
    """
    y = layer_norm(
        x,
        reduction_axes=feature_axes,
        epsilon=epsilon,
        mask=mask,
        dtype=arithmetic_dtype(x, scale, shift),
    )
    y_dtype = result_dtype(dtype, x, scale, shift)
    return modulate(y, scale, shift, feature_axes=feature_axes, scale_offset=1.0, dtype=y_dtype)


@dataclass(kw_only=True, eq=False)
class AdaLayerNormRecipe(Recipe):
    """A layer of `ada_layer_norm`, called with the condition (examples, features of it) after x.

    Scale and shift, in this order, are a linear map of silu(condition), which begins at 0. (DiT's has the
    shift first.)
    """

    condition_features: int
    """Size of the condition's last axis."""
    epsilon: float = 1e-6
    """Added to the variance."""
    kernel_init: Initializer = initializers.zeros
    """Initializer of the linear map."""
    chunks = 2  # scale and shift

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Of the linear map: ``kernel`` (features of the condition, chunks, *features) and ``bias``."""
        return {
            "kernel": Parameter(self.kernel_init, (self.condition_features, self.chunks, *shape)),
            "bias": Parameter(initializers.zeros, (self.chunks, *shape)),
        }

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Without state."""
        return self.adapted(x, variables, call)[0], {}

    def adapted(
        self, x: jax.Array, variables: State, call: Call
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The result, and what else the linear map has computed."""
        condition = jnp.asarray(call.condition)
        if condition.ndim < 2 or condition.shape[-1] != self.condition_features:
            raise ValueError(
                f"the condition must be (examples, ..., {self.condition_features}), as condition_features "
                f"says; got shape {condition.shape}."
            )
        wide = arithmetic_dtype(condition, *variables.values())
        chunks = jnp.tensordot(
            jax.nn.silu(condition.astype(wide)), variables["kernel"].astype(wide), axes=1
        )
        bias = variables["bias"].astype(wide)
        chunks = chunks + bias.reshape((1,) * (condition.ndim - 1) + bias.shape)
        scale, shift, *others = jnp.moveaxis(chunks, condition.ndim - 1, 0)
        y = ada_layer_norm(
            x,
            scale,
            shift,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=call.mask,
            dtype=result_dtype(self.dtype, x, *variables.values()),
        )
        return y, others


@dataclass(kw_only=True, eq=False)
class AdaLayerNormZeroRecipe(AdaLayerNormRecipe):
    """AdaLN-Zero: returns (y, gate). With x + gate · f(y), a block begins as the identity."""

    chunks = 3  # and the gate

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Without state; the gate is of a shape that broadcasts to x."""
        y, (gate,) = self.adapted(x, variables, call)
        gate = modulate(jnp.ones_like(y), gate, feature_axes=self.feature_axes, dtype=y.dtype)
        return (y, gate), {}
