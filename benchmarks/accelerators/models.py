"""What is compiled of models: norms between the layers that they meet there, and training steps."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .programs import Library, Program, layer, steps_of

# --- norms between other layers ------------------------------------------------------------------


class ConvBlock(nn.Module):
    """Convolution, norm, relu or silu, convolution; a residual is added first, if there is one."""

    library: Library
    norm: str
    dtype: Any
    activation: Callable[..., Any] = nn.relu
    adds: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Shape as x."""
        width = x.shape[-1]
        y = nn.Conv(4 * width, (1, 1), use_bias=False, dtype=self.dtype)(x)
        if self.adds:
            y = y + jnp.concatenate([x] * 4, -1)
        y = self.activation(layer(self.library, self.norm, self.dtype)(y))
        return nn.Conv(width, (1, 1), use_bias=False, dtype=self.dtype)(y)


class DenseBlock(nn.Module):
    """A residual sum, norm, dense layer, gelu."""

    library: Library
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Four times as many features."""
        x = x + nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype)(x)
        y = layer(self.library, self.norm, self.dtype)(x)
        return nn.gelu(nn.Dense(4 * x.shape[-1], use_bias=False, dtype=self.dtype)(y))


BLOCKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "conv, BatchNorm, relu, conv": (partial(ConvBlock, norm="BatchNorm"), (128, 28, 28, 128)),
    "conv, BatchNorm, relu, conv, small x": (
        partial(ConvBlock, norm="BatchNorm"),
        (64, 14, 14, 256),
    ),
    "conv + residual, BatchNorm, relu, conv": (
        partial(ConvBlock, norm="BatchNorm", adds=True),
        (128, 28, 28, 128),
    ),
    "conv, GroupNorm, silu, conv": (
        partial(ConvBlock, norm="GroupNorm", activation=nn.silu),
        (16, 64, 64, 80),
    ),
    "residual, LayerNorm, dense, gelu": (partial(DenseBlock, norm="LayerNorm"), (25216, 384)),
    "residual, RMSNorm, dense, gelu": (partial(DenseBlock, norm="RMSNorm"), (25216, 384)),
}


def blocks(dtypes: tuple[str, ...], *, quick: bool) -> Iterator[Program]:
    """Norms between the layers that they meet in models, forward and backward."""
    for name, (block, shape) in BLOCKS.items():
        for dtype in dtypes[: 1 if quick else None]:
            x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

            def of(library: Library, x: Any = x, block: Any = block) -> Any:
                return steps_of(block(library=library, dtype=x.dtype), "both", x)

            yield Program(name, dtype, "both", of, math.prod(shape) * 4 * x.dtype.itemsize)


# --- training steps ------------------------------------------------------------------------------


class ResNet(nn.Module):
    """ResNet-50 with some of its blocks: (3, 4, 6, 3) are all."""

    library: Library
    dtype: Any
    depths: tuple[int, ...] = (1, 1, 1, 1)
    fused: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        x = self.normalized(conv(64, (7, 7), 2)(x), "relu")
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                width, strides = 64 * 2**stage, 2 if stage and i == 0 else 1
                y = self.normalized(conv(width, (1, 1))(x), "relu")
                y = self.normalized(conv(width, (3, 3), strides)(y), "relu")
                y = self.normalized(conv(4 * width, (1, 1))(y))
                if x.shape != y.shape:
                    x = self.normalized(conv(4 * width, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(1000, dtype=self.dtype)(x.mean((1, 2)))

    def normalized(self, x: jax.Array, activation: str | None = None) -> jax.Array:
        """With the activation as part of the norm, if that is asked for."""
        if activation and self.fused and self.library == "jaxnorm":
            return layer(self.library, "BatchNorm", self.dtype, activation=activation)(x)
        x = layer(self.library, "BatchNorm", self.dtype)(x)
        return nn.relu(x) if activation else x


class Transformer(nn.Module):
    """Blocks of ViT-S (LayerNorm) or of a GPT of that size (RMSNorm), norms first."""

    library: Library
    dtype: Any
    norm: str = "LayerNorm"
    depth: int = 2
    heads: int = 6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Shape as x."""
        width = x.shape[-1]
        norm = partial(layer, self.library, self.norm, self.dtype)
        for _ in range(self.depth):
            y = norm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(y)
            y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(norm()(x)))
            x = x + nn.Dense(width, dtype=self.dtype)(y)
        return norm()(x)


class UNetBlock(nn.Module):
    """Two residual blocks of a diffusion U-Net: group norm, silu, convolution, twice."""

    library: Library
    dtype: Any
    depth: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Shape as x."""
        for _ in range(self.depth):
            y = x
            for _ in range(2):
                y = nn.silu(layer(self.library, "GroupNorm", self.dtype)(y))
                y = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(y)
            x = x + y
        return x


STEPS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "ResNet-50": (ResNet, (64, 224, 224, 3)),
    'ResNet-50, activation="relu"': (partial(ResNet, fused=True), (64, 224, 224, 3)),
    "ViT-S": (Transformer, (64, 256, 384)),
    "GPT, RMSNorm": (partial(Transformer, norm="RMSNorm"), (8, 1024, 384)),
    "U-Net": (UNetBlock, (16, 64, 64, 320)),
}
# The compiler of jax 0.10.2 for these overflows its stack on Flax's program.
CRASHING = {("v6e", "ResNet-50")}
FULL: dict[str, dict[str, Any]] = {
    "ResNet-50": {"depths": (3, 4, 6, 3)},
    'ResNet-50, activation="relu"': {"depths": (3, 4, 6, 3)},
    "ViT-S": {"depth": 12},
    "GPT, RMSNorm": {"depth": 12},
}


def steps(dtypes: tuple[str, ...], *, full: bool) -> Iterator[Program]:
    """Loss, gradients and updated statistics, at reduced depth, or with ``full`` of those that are deeper."""
    for name in FULL if full else STEPS:
        model, shape = STEPS[name]
        dtype = dtypes[0]
        x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        depth = FULL[name] if full else {}

        def of(library: Library, x: Any = x, model: Any = model, depth: Any = depth) -> Any:
            return loss_of(model(library=library, dtype=x.dtype, **depth), x)

        shown = f"{name}, full depth" if full else name
        yield Program(shown, dtype, "both", of, math.prod(shape) * x.dtype.itemsize)


def loss_of(model: nn.Module, x: Any) -> tuple[Callable[..., Any], Any]:
    """A training step without the optimizer."""
    forward, (params, state, _) = steps_of(model, "forward", x)

    def step(params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            y, updated = forward(params, state, x)
            return (y.astype(jnp.float32) ** 2).mean(), updated

        return jax.value_and_grad(loss, has_aux=True)(params)

    return step, (params, state, x)
