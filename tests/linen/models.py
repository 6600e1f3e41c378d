"""Layers and wrappers in Linen for the tests in this folder."""

from typing import Any

import flax.linen as nn
import jax

from jaxnorm import linen as jnl
from tests.modules import ramp


class Bare(nn.Module):
    """A wrapper that does nothing."""

    layer_instance: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, **call: Any) -> jax.Array:
        """Calls the layer."""
        return self.layer_instance(x, **call)


class Block(nn.Module):
    """A layer with running statistics, noise and a mode."""

    axis_name: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Applies two dense layers with batch norm, a sown value and dropout between them."""
        x = nn.Dense(6)(x)
        x = jnl.BatchNorm(axis_name=self.axis_name)(x, use_running_average)
        self.sow("intermediates", "seen", x.mean())
        x = nn.Dropout(0.5, deterministic=use_running_average)(x)
        return nn.Dense(3)(x)


class Bar(nn.Module):
    """Several layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies two dense layers."""
        return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))


def wrapper_of(name: str, layer: nn.Module, **fields: Any) -> Any:
    """One of our wrappers, with a parameter of its own if it can have one."""
    if name == "WeightStandardization":
        fields |= {"use_gain": True, "gain_init": ramp}
    if name == "WeightNorm":
        fields |= {"scale_init": ramp}
    return getattr(jnl, name)(layer, **fields)
