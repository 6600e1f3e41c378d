"""Layers, models and wrappers in NNX for the tests in this folder."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxnorm import nnx as jnx
from tests.modules import flat, ramp


class Bar(nnx.Module):
    """Several layers, with the same name at different depths."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates one layer, and two in a list."""
        self.first = nnx.Linear(6, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers in sequence."""
        x = self.first(x)
        for layer in self.layers:
            x = layer(nnx.relu(x))
        return x


def linear(rngs: nnx.Rngs) -> Any:
    """A linear layer."""
    return nnx.Linear(6, 3, rngs=rngs)


def conv(rngs: nnx.Rngs) -> Any:
    """A layer with a kernel of rank 3."""
    return nnx.Conv(6, 3, (3,), rngs=rngs)


def without(rngs: nnx.Rngs) -> Any:
    """A layer without bias."""
    return nnx.Linear(6, 3, use_bias=False, rngs=rngs)


Make = Callable[[nnx.Rngs], nnx.Module]


def wrapper_of(name: str, layer: Make = linear, seed: int = 0, **fields: Any) -> Any:
    """One of our wrappers, with a parameter of its own if it can have one."""
    if name == "WeightStandardization":
        fields |= {"use_gain": True, "gain_init": ramp}
    if name == "WeightNorm":
        fields |= {"scale_init": ramp}
    rngs = nnx.Rngs(seed)
    return getattr(jnx, name)(layer(rngs), rngs=rngs, **fields)


class Block(nnx.Module):
    """A layer with running statistics and noise."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates layers of the same width."""
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.norm = jnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers in sequence."""
        return self.dropout(self.norm(self.linear(x)))


class Normed(nnx.Module):
    """A layer and its norm."""

    def __init__(self, norm: Callable[..., nnx.Module], rngs: nnx.Rngs) -> None:
        """Creates a layer and a norm of the same width."""
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.norm: Any = norm(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the norm to the layer's output."""
        return self.norm(self.linear(x))


MODELS: dict[str, Callable[[nnx.Rngs], Any]] = {
    "BatchNorm": lambda rngs: Normed(lambda r: jnx.BatchNorm(6, momentum=0.5, rngs=r), rngs),
    "BatchNorm, average": lambda rngs: Normed(
        lambda r: jnx.BatchNorm(6, momentum=None, rngs=r), rngs
    ),
    "LayerNorm": lambda rngs: Normed(lambda r: jnx.LayerNorm(6, rngs=r), rngs),
    "RMSNorm": lambda rngs: Normed(lambda r: jnx.RMSNorm(6, rngs=r), rngs),
    "GroupNorm": lambda rngs: Normed(lambda r: jnx.GroupNorm(6, 3, rngs=r), rngs),
    "InstanceNorm": lambda rngs: Normed(lambda r: jnx.InstanceNorm(6, rngs=r), rngs),
    "InstanceNorm, tracked": lambda rngs: Normed(
        lambda r: jnx.InstanceNorm(6, track_running_stats=True, momentum=0.5, rngs=r), rngs
    ),
    "LocalResponseNorm": lambda rngs: Normed(lambda r: jnx.LocalResponseNorm(6), rngs),
    "SpectralNorm": lambda rngs: jnx.SpectralNorm(Block(rngs), rngs=rngs),
    "WeightNorm": lambda rngs: jnx.WeightNorm(Block(rngs), scale_init=ramp, rngs=rngs),
    "WeightStandardization": lambda rngs: jnx.WeightStandardization(
        Block(rngs), use_gain=True, gain_init=ramp, rngs=rngs
    ),
}
STATEFUL = [n for n in MODELS if n.startswith(("Batch", "Spectral", "Weight")) or "tracked" in n]


def model_of(name: str, seed: int = 0) -> Any:
    """A fresh model."""
    return MODELS[name](nnx.Rngs(seed))


def forward(model: Any, x: jax.Array) -> Any:
    """Calls the model."""
    return model(x)


def numbers(model: Any, kind: Any = ...) -> dict[str, np.ndarray]:
    """The model's variables."""
    return flat(nnx.state(model, kind))
