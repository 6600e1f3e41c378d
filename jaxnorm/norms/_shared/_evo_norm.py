"""What the EvoNorms share (Liu et al., 2020, https://arxiv.org/abs/2004.02967)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._pool import Moments
from ._arithmetic import affine, root
from ._prepare import Operands, operands
from ._recipe import (
    Affine,
    Call,
    Initializer,
    Parameter,
    Shape,
    Shared,
    State,
    Tracked,
    scale_and_bias,
)
from ._running_norm import RunningNorm


def mean_square(m: Moments) -> jax.Array:
    """Returns the mean square of values with the moments ``m``."""
    return m.var + m.mean**2


def divided_by_larger(o: Operands, var: jax.Array, line: jax.Array, epsilon: float) -> jax.Array:
    """Returns x / max(sqrt(var + ε), line) · scale + bias in the dtype of the result."""
    divisor = jnp.maximum(root(var + epsilon), line)
    y = o.x / jnp.where(divisor == 0, 1, divisor)
    return affine(y, *o.parameters[-2:]).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class EvoNorm(Affine):
    """A norm and activation in one layer."""

    nonlinearity: bool = True
    """False computes only x · scale + bias, as in the paper's networks where no activation follows."""

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``, or computes only x · scale + bias."""
        if self.nonlinearity:
            return self._activated(x, variables, call)
        scale, bias = scale_and_bias(variables)
        given = {"scale": scale, "bias": bias}
        options = {"feature_axes": self.feature_axes, "dtype": self.dtype, "mask": call.mask}
        o = operands(x, given, **options)
        return affine(o.x, *o.parameters).astype(o.dtype), {}

    def _activated(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Returns the output with the nonlinearity and the updated state variables."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Sloped(EvoNorm):
    """An EvoNorm with a learned coefficient of x."""

    v_init: Initializer = initializers.ones
    """Initializer of v."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``v`` if there is a nonlinearity, then scale and bias."""
        v = {"v": Parameter(self.v_init, shape)} if self.nonlinearity else {}
        return v | super()._parameters(shape)


@dataclass(kw_only=True, eq=False)
class OfBatch(EvoNorm, Tracked):
    """An EvoNorm with running statistics."""

    momentum: float | jax.Array | None = 0.9
    """Weight of the *old* running value (PyTorch: the new one); None weights all batches equally."""
    unbiased: bool = False
    """Update the running variance with the batch variance times n / (n - 1), as timm does."""
    epsilon: float
    """Added to the variances."""

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """The running statistics, unless nothing is normalized."""
        return super()._initial_state(shape, dtype) if self.nonlinearity else {}

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        if not self.nonlinearity:
            return None
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum, self.unbiased)


@dataclass(kw_only=True, eq=False)
class OfGroups(EvoNorm, Shared):
    """An EvoNorm with statistics of groups of channels of each example."""

    num_groups: int | None = 32
    """Number of groups; must divide the number of channels."""
    group_size: int | None = None
    """Channels per group, as an alternative to ``num_groups``, which must then be None."""
    epsilon: float = 1e-5
    """Added to the variance or mean square."""
