"""Class-conditional batch norm (de Vries et al., 2017, https://arxiv.org/abs/1707.00683)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ...core._precision import arithmetic_dtype, result_dtype
from .._shared._recipe import (
    Affine,
    Call,
    Parameter,
    Shape,
    State,
    Tracked,
    scale_and_bias,
    stats_of,
)
from .._shared._running_norm import RunningNorm
from ..batch._batch_norm import batch_norm, batch_norm_inference
from ._modulate import modulate


@dataclass(kw_only=True, eq=False)
class ConditionalBatchNormRecipe(Affine, Tracked):
    """Batch norm with a scale and a bias for each class; labels (examples,) are passed after x.

    Each class has one row of scales and one row of biases. A label that is out of range gives NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.ConditionalBatchNorm(num_classes=10)
        >>> variables = layer.init(jax.random.key(0), x, jnp.zeros(8, int), use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'var': (4,)}, 'params': {'bias': (10, 4), 'scale': (10, 4)}}
        >>> layer = jnx.ConditionalBatchNorm(4, num_classes=10, rngs=nnx.Rngs(0))
        >>> y = layer(x, jnp.zeros(8, int), use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale var (8, 4)
    """

    num_classes: int
    """Number of classes: rows of the scale and bias tables."""
    epsilon: float = 1e-5
    """Added to the variance."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``scale`` and ``bias``, with one row per class."""
        return super()._parameters((self.num_classes, *shape))

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum)

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics."""
        labels = jnp.asarray(call.condition)
        stats = stats_of(variables)
        tables = scale_and_bias(variables)
        labels = jnp.where(labels < 0, self.num_classes, labels)  # filled with NaN below
        rows = [None if table is None else table.at[labels].get(mode="fill") for table in tables]
        modes, wide = (batch_norm, batch_norm_inference), arithmetic_dtype(x, *tables)
        y, updated = self._in_mode(call, *modes, x, stats, dtype=wide)
        dtype = result_dtype(self.dtype, x, *tables)
        return modulate(y, *rows, feature_axes=self.feature_axes, dtype=dtype), updated
