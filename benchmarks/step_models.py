"""The models of `steps` in Linen and in NNX; the norm is an argument, and everything else is Flax's."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

WIDTH, HEADS, DEPTH = 256, 4, 16


class LinenStack(nn.Module):
    """Dense → norm → relu, 16 times; the only residuals are those of the norms and the layers."""

    norm: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array with the shape of x."""
        for _ in range(DEPTH):
            x = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(self.norm(use_running_average=False, dtype=self.dtype)(x))
        return x


class LinenBlock(nn.Module):
    """A pre-norm transformer block."""

    norm: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array with the shape of x."""
        x = x.astype(self.dtype)
        y = self.norm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS, dtype=self.dtype)(y)
        y = self.norm(dtype=self.dtype)(x)
        y = nn.gelu(nn.Dense(4 * WIDTH, dtype=self.dtype)(y))
        return x + nn.Dense(WIDTH, dtype=self.dtype)(y)


class NNXStack(nnx.Module):
    """The NNX version of `LinenStack`."""

    def __init__(self, norm: Callable[..., Any], width: int, dtype: Any, rngs: nnx.Rngs) -> None:
        """Creates layers with `width` features in and out."""
        self.layers = nnx.List(
            nnx.Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs) for _ in range(DEPTH)
        )
        self.norms = nnx.List(norm(width, dtype=dtype, rngs=rngs) for _ in range(DEPTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array with the shape of x."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return x


class NNXBlock(nnx.Module):
    """The NNX version of `LinenBlock`."""

    def __init__(self, norm: Callable[..., Any], dtype: Any, rngs: nnx.Rngs) -> None:
        """Creates layers with `WIDTH` features."""
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.dtype = dtype
        self.norms = nnx.List(norm(WIDTH, **options) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, **options)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, **options)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array with the shape of x."""
        x = x.astype(self.dtype)
        x = x + self.attention(self.norms[0](x))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))


class NNXConv(nnx.Module):
    """A 3x3 convolution and a norm."""

    def __init__(
        self, norm: Callable[..., Any], features: tuple[int, int], strides: int, rngs: nnx.Rngs
    ) -> None:
        """Creates the layers; `features` are the input and output channels."""
        self.conv = nnx.Conv(*features, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm = norm(features[1], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalized output, without an activation."""
        return self.norm(self.conv(x))


class NNXResNet20(nnx.Module):
    """The NNX version of `examples.models.ResNet20`."""

    def __init__(self, norm: Callable[..., Any], classes: int, rngs: nnx.Rngs) -> None:
        """Creates the layers for images with three channels."""
        self.stem = NNXConv(norm, (3, 16), 1, rngs)
        self.convs = nnx.List()
        width = 16
        for features in (16, 32, 64):
            for _ in range(3):
                self.convs.append(NNXConv(norm, (width, features), features // width, rngs))
                self.convs.append(NNXConv(norm, (features, features), 1, rngs))
                width = features
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits."""
        x = nnx.relu(self.stem(x))
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            y = second(nnx.relu(first(x)))
            strides, more = x.shape[1] // y.shape[1], y.shape[-1] - x.shape[-1]
            shortcut = jnp.pad(x[:, ::strides, ::strides], [(0, 0)] * 3 + [(0, more)])
            x = nnx.relu(y + shortcut)
        return self.head(x.mean((1, 2)))
