"""Recipes of layers whose scale and shift are computed from a condition."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.nn import initializers

from ...core._precision import arithmetic_dtype, result_dtype
from .._shared._recipe import Call, Initializer, Parameter, Recipe, Shape, State
from ._modulate import modulate


@dataclass(kw_only=True, eq=False)
class AdaptiveRecipe(Recipe):
    """A layer with a linear map of silu(condition) to scale, shift and gate; the condition is passed after x.

    With a gate, it returns (y, gate).
    """

    _function: ClassVar[Callable[..., jax.Array]]
    """Takes x, scale and, unless ``use_shift`` is False, shift."""
    _is_gated: ClassVar[bool] = False
    """Whether the layer also returns a gate."""

    condition_features: int
    """Size of the condition's last axis."""
    kernel_init: Initializer = initializers.zeros
    """Initializer of the linear map."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``kernel`` (condition features, chunks, *features) and ``bias`` of the linear map."""
        chunks = 1 + getattr(self, "use_shift", True) + self._is_gated
        return {
            "kernel": Parameter(self.kernel_init, (self.condition_features, chunks, *shape)),
            "bias": Parameter(initializers.zeros, (chunks, *shape)),
        }

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Applies the norm; there is no state to update."""
        chunks = self._chunks(jnp.asarray(call.condition), variables)
        function = type(self)._function
        options = self._options(call, function)
        options["dtype"] = result_dtype(self.dtype, x, *variables.values())
        if not self._is_gated:
            return function(x, *chunks, **options), {}
        *affine, gate = chunks
        y = function(x, *affine, **options)
        # Broadcast from one value for each example.
        gate = modulate(jnp.ones_like(y), gate, feature_axes=self.feature_axes, dtype=y.dtype)
        return (y, gate), {}

    def _chunks(self, condition: jax.Array, variables: State) -> list[jax.Array]:
        """Returns scale, shift and gate, as far as the layer has them, in float32 or wider."""
        if condition.ndim < 2 or condition.shape[-1] != self.condition_features:
            raise ValueError(
                f"condition must have shape (examples, ..., {self.condition_features}) to match "
                f"condition_features; got shape {condition.shape}."
            )
        wide = arithmetic_dtype(condition, *variables.values())
        kernel, bias = (variables[name].astype(wide) for name in ("kernel", "bias"))
        chunks = jnp.tensordot(jax.nn.silu(condition.astype(wide)), kernel, axes=1)
        chunks = chunks + bias.reshape((1,) * (condition.ndim - 1) + bias.shape)
        return list(jnp.moveaxis(chunks, condition.ndim - 1, 0))
