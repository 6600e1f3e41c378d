"""Batch norm as a fixed scale and shift, as detection networks have."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from ..core._running import init_running_stats
from ._batch_norm import batch_norm_inference
from ._recipe import Call, Recipe, Shape, State, affine_of, present, stats_of


@dataclass(kw_only=True, eq=False)
class FrozenBatchNormRecipe(Recipe):
    """A layer of `batch_norm_inference` that trains nothing and moves nothing.

    Scale and bias are state, like the running statistics, so that no optimizer sees them. They have the
    ``param_dtype``.
    """

    epsilon: float = 1e-5
    """Added to the variance."""

    def state(self, shape: Shape) -> dict[str, jax.Array]:
        """``mean``, ``var``, ``scale`` and ``bias``."""
        dtype = self.param_dtype
        affine = {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}
        return {**present(init_running_stats(shape)), **affine}

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """The same in training and evaluation."""
        fixed = lax.stop_gradient(dict(variables))
        y = batch_norm_inference(
            x,
            stats_of(fixed),
            *affine_of(fixed),
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=call.mask,
            dtype=self.dtype,
        )
        return y, {}
