"""Batch norm as a fixed scale and shift, as in detection networks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._precision import dtype_of_mean
from ...core._running import init_running_stats
from .._shared._recipe import Call, Recipe, Shape, State, present, scale_and_bias, stats_of
from .._shared._running_norm import RunningNorm
from ._batch_norm import batch_norm_inference


@dataclass(kw_only=True, eq=False)
class FrozenBatchNormRecipe(Recipe):
    """Frozen batch norm (`jaxnorm.batch_norm_inference`): nothing is trained or updated.

    Scale and bias are state, like the running statistics, so optimizers do not see them. Their dtype is
    ``param_dtype``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.FrozenBatchNorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'bias': (4,), 'mean': (4,), 'scale': (4,), 'var': (4,)}}
        >>> layer = jnx.FrozenBatchNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale var (8, 4)
    """

    epsilon: float = 1e-5
    """Added to the variance."""

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``mean``, ``var``, ``scale`` and ``bias``."""
        ones, zeros = (fill(shape, self.param_dtype) for fill in (jnp.ones, jnp.zeros))
        stats = init_running_stats(shape, dtype_of_mean(dtype))
        return {**present(stats), "scale": ones, "bias": zeros}

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        return None

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm, in the same way in training and evaluation."""
        fixed = lax.stop_gradient(dict(variables))
        y = batch_norm_inference(
            x,
            stats_of(fixed),
            *scale_and_bias(fixed),
            **self._options(call, batch_norm_inference),
        )
        return y, {}
