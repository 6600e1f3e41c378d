"""The two networks of the CIFAR-10 example, with the norm as an argument.

A norm is a constructor, as returned by `jnl.get_norm("group", num_groups=8)`. Batch norm needs two arguments
from a model: `train` selects batch statistics or running statistics, and `mask` excludes the padding of a
batch. Every other norm accepts both as well, and ignores those it does not use.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm import linen as jnl

Norm: TypeAlias = Callable[..., nn.Module]
Place: TypeAlias = Literal["before", "after"]
Activation: TypeAlias = Callable[[jax.Array], jax.Array]


SHARED = ("norm", "wrap", "bias", "place", "activation", "dtype")


class NormalizedConv(nn.Module):
    """3x3 convolution and optional max pool, then norm and activation in the order given by `place`."""

    features: int
    norm: Norm = jnl.BatchNorm
    wrap: Norm | None = None  # a norm of the weights, wrapped around the convolution
    bias: bool = False  # batch norm would cancel it by subtracting the mean
    place: Place = "before"
    dtype: Any = jnp.float32
    pool: bool = False
    strides: int = 1
    activation: Activation | None = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns activations with `features` channels for an input (N, H, W, channels)."""
        conv = nn.Conv(self.features, (3, 3), self.strides, use_bias=self.bias, dtype=self.dtype)
        x = conv(x) if self.wrap is None else self.wrap(conv)(x, use_running_average=not train)
        if self.pool:
            x = max_pool(x)
        if self.activation and self.place == "after":
            x = self.activation(x)
        x = self.norm()(x, use_running_average=not train, mask=mask)
        if self.activation and self.place == "before":
            x = self.activation(x)
        return x


class CNN(nn.Module):
    """A stem, groups of convolutions that each halve the image, global max pooling and a linear layer.

    A narrower version of airbench (Jordan, 2024, https://arxiv.org/abs/2404.00498).
    """

    widths: tuple[int, ...] = (64, 64, 128)  # channels of each group
    depth: int = 2  # convolutions per group
    stem_width: int = 32
    stem_stride: int = 2
    norm: Norm = jnl.BatchNorm
    wrap: Norm | None = None
    bias: bool = False
    place: Place = "before"
    activation: Activation | None = nn.relu  # None if the norm includes one
    dtype: Any = jnp.float32
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits (N, classes) for images (N, H, W, channels)."""
        x = x.astype(self.dtype)
        stride = self.stem_stride if x.shape[1] > 16 else 1  # 8x8 digits are too small for a stride
        x = nn.relu(nn.Conv(self.stem_width, (stride + 2,) * 2, stride, dtype=self.dtype)(x))
        for width in self.widths:
            for i in range(self.depth):
                x = normalized_conv(self, width, pool=i == 0)(x, train, mask)
        x = x.max((1, 2))
        # Start with small logits, so that their scale does not dominate the first steps.
        return nn.Dense(self.classes, use_bias=False)(at_least_float32(x)) / 9


class ResNet20(nn.Module):
    """The CIFAR-10 network of He et al. (2015, https://arxiv.org/abs/1512.03385)."""

    norm: Norm = jnl.BatchNorm
    wrap: Norm | None = None
    bias: bool = False
    place: Place = "before"
    activation: Activation | None = nn.relu  # None if the norm includes one
    dtype: Any = jnp.float32
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Returns logits (N, classes) for images (N, H, W, channels)."""

        def conv(features: int, x: jax.Array, **options: Any) -> jax.Array:
            return normalized_conv(self, features, **options)(x, train, mask)

        x = conv(16, x.astype(self.dtype))
        for width in (16, 32, 64):
            for _ in range(3):
                strides = 1 if x.shape[-1] == width else 2
                y = conv(width, conv(width, x, strides=strides), activation=None)
                # If the shape changes, the shortcut takes every other pixel and pads the channels.
                shortcut = x[:, ::strides, ::strides]
                x = nn.relu(y + jnp.pad(shortcut, [(0, 0)] * 3 + [(0, width - x.shape[-1])]))
        x = at_least_float32(x).mean((1, 2))
        return nn.Dense(self.classes)(x)


def normalized_conv(model: CNN | ResNet20, features: int, **options: Any) -> NormalizedConv:
    """Returns a convolution with the norm of `model`."""
    of_all = {name: getattr(model, name) for name in SHARED}
    return NormalizedConv(features, **{**of_all, **options})


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts `x` to at least float32 for the last layer."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pool that drops an odd last row or column; a single row or column is returned as it is.

    It is written with maxima of slices, so its gradient is a select. The gradient of a window reduction is
    a scatter, which is several times slower on a CPU.
    """
    _, h, w, _ = x.shape
    if min(h, w) == 1:
        return x
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
