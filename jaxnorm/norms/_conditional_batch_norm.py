"""Class-conditional batch norm (de Vries et al., 2017, https://arxiv.org/abs/1707.00683)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..core._precision import arithmetic_dtype, result_dtype
from ._batch_norm import batch_norm, batch_norm_inference
from ._modulate import modulate
from ._recipe import (
    Affine,
    Call,
    Parameter,
    Shape,
    State,
    Tracked,
    present,
    scale_and_bias,
    stats_of,
)
from ._running_norm import RunningNorm


@dataclass(kw_only=True, eq=False)
class ConditionalBatchNormRecipe(Affine, Tracked):
    """Recipe for a layer of `batch_norm` and `modulate`, called with labels (examples,) after x.

    Each class has one row of scales and one row of biases. A label that is out of range gives NaN.
    """

    num_classes: int
    """Number of classes: rows of the scale and bias tables."""
    epsilon: float = 1e-5
    """Added to the variance."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``scale`` and ``bias``, with one row per class."""
        return super().parameters((self.num_classes, *shape))

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum)

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics."""
        labels = jnp.asarray(call.condition)
        stats = stats_of(variables)
        tables = scale_and_bias(variables)
        labels = jnp.where(labels < 0, self.num_classes, labels)  # filled with NaN below
        rows = [None if table is None else table.at[labels].get(mode="fill") for table in tables]
        options: dict[str, Any] = {
            "feature_axes": self.feature_axes,
            "epsilon": self.epsilon,
            "mask": call.mask,
            "dtype": arithmetic_dtype(x, *tables),
        }
        if call.evaluating:
            y, updated = batch_norm_inference(x, stats, **options), {}
        else:
            y, moved = batch_norm(x, stats, momentum=self.momentum, **options, **call.devices)
            updated = present(moved)
        dtype = result_dtype(self.dtype, x, *tables)
        return modulate(y, *rows, feature_axes=self.feature_axes, dtype=dtype), updated
