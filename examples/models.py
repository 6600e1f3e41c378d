"""The two networks of the CIFAR-10 example. Which norm they have is an argument.

A norm is a constructor, such as `jnl.get_norm("group", num_groups=8)` gives. Batch norm needs two things
of a model: `train` tells whether to use the statistics of the batch or the running ones, and `mask` says
which images of a padded batch count. Every other norm takes them too, and ignores what it has no use for.
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
    """3x3 convolution, max pool if asked for, then norm and activation in the order `place` says."""

    features: int
    norm: Norm = jnl.BatchNorm
    wrap: Norm | None = None  # a norm of weights around the convolution
    bias: bool = False  # batch norm would subtract it again with the mean
    place: Place = "before"
    dtype: Any = jnp.float32
    pool: bool = False
    strides: int = 1
    activation: Activation | None = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Activations of (N, H, W, features) from (N, H, W, channels)."""
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
    """A stem, groups of convolutions that halve the image, a maximum over what is left, a linear layer.

    The shape is that of airbench (Jordan, 2024, https://arxiv.org/abs/2404.00498), narrower.
    """

    widths: tuple[int, ...] = (64, 64, 128)  # channels of each group
    depth: int = 2  # convolutions a group
    stem_width: int = 32
    stem_stride: int = 2
    norm: Norm = jnl.BatchNorm
    wrap: Norm | None = None
    bias: bool = False
    place: Place = "before"
    activation: Activation | None = nn.relu  # None where the norm has one of its own
    dtype: Any = jnp.float32
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Logits (N, classes) of images (N, H, W, channels)."""
        x = x.astype(self.dtype)
        stride = self.stem_stride if x.shape[1] > 16 else 1  # 8x8 digits have no pixel to spare
        x = nn.relu(nn.Conv(self.stem_width, (stride + 2,) * 2, stride, dtype=self.dtype)(x))
        for width in self.widths:
            for i in range(self.depth):
                x = normalized_conv(self, width, pool=i == 0)(x, train, mask)
        x = x.max((1, 2))
        # Small logits at the start, so that the first steps are not all about their size.
        return nn.Dense(self.classes, use_bias=False)(at_least_float32(x)) / 9


class ResNet20(nn.Module):
    """The CIFAR-10 network of He et al. (2015, https://arxiv.org/abs/1512.03385)."""

    norm: Norm = jnl.BatchNorm
    wrap: Norm | None = None
    bias: bool = False
    place: Place = "before"
    activation: Activation | None = nn.relu  # None where the norm has one of its own
    dtype: Any = jnp.float32
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Logits (N, classes) of images (N, H, W, channels)."""

        def conv(features: int, x: jax.Array, **options: Any) -> jax.Array:
            return normalized_conv(self, features, **options)(x, train, mask)

        x = conv(16, x.astype(self.dtype))
        for width in (16, 32, 64):
            for _ in range(3):
                strides = 1 if x.shape[-1] == width else 2
                y = conv(width, conv(width, x, strides=strides), activation=None)
                # Where the shape changes, the shortcut takes every other pixel and pads the channels.
                shortcut = x[:, ::strides, ::strides]
                x = nn.relu(y + jnp.pad(shortcut, [(0, 0)] * 3 + [(0, width - x.shape[-1])]))
        x = at_least_float32(x).mean((1, 2))
        return nn.Dense(self.classes)(x)


def normalized_conv(model: CNN | ResNet20, features: int, **options: Any) -> NormalizedConv:
    """A convolution with the norm of `model`."""
    of_all = {name: getattr(model, name) for name in SHARED}
    return NormalizedConv(features, **{**of_all, **options})


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` for the last layer, which decides."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pool; an odd last row or column is dropped, and a single pixel stays as it is.

    Written with maxima of slices, its gradient is a select. That of a window reduction is a scatter,
    which takes a CPU several times as long.
    """
    _, h, w, _ = x.shape
    if min(h, w) == 1:
        return x
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
