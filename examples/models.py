"""The two networks of the CIFAR-10 example, each with batch norm where you say.

Batch norm needs three things of a model: `train` tells whether to use the statistics of the batch or
the running ones, `mask` says which images of a padded batch count, and `momentum` how fast the running
statistics move. Everything else is an ordinary Flax model.
"""

from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm import linen as jnl

Norm: TypeAlias = Literal["batch", "none"]
Place: TypeAlias = Literal["before", "after"]


class NormalizedConv(nn.Module):
    """3x3 convolution, max pool if asked for, then norm and activation in the order `place` says."""

    features: int
    norm: Norm = "batch"
    place: Place = "before"
    momentum: float = 0.9
    dtype: Any = jnp.float32
    pool: bool = False
    strides: int = 1
    activation: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Activations of (N, H, W, features) from (N, H, W, channels)."""
        # A bias would be subtracted again with the mean.
        bias = self.norm == "none"
        x = nn.Conv(self.features, (3, 3), self.strides, use_bias=bias, dtype=self.dtype)(x)
        if self.pool:
            x = max_pool(x)
        if self.activation and self.place == "after":
            x = nn.relu(x)
        if self.norm == "batch":
            norm = jnl.BatchNorm(momentum=self.momentum, dtype=self.dtype)
            x = norm(x, use_running_average=not train, mask=mask)
        if self.activation and self.place == "before":
            x = nn.relu(x)
        return x


class CNN(nn.Module):
    """A stem, groups of convolutions that halve the image, a maximum over what is left, a linear layer.

    The shape is that of airbench (Jordan, 2024, https://arxiv.org/abs/2404.00498), narrower.
    """

    widths: tuple[int, ...] = (64, 64, 128)  # channels of each group
    depth: int = 2  # convolutions a group
    stem_width: int = 32
    stem_stride: int = 2
    norm: Norm = "batch"
    place: Place = "before"
    momentum: float = 0.9
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
                x = NormalizedConv(
                    width, self.norm, self.place, self.momentum, self.dtype, pool=i == 0
                )(x, train, mask)
        x = x.max((1, 2))
        # Small logits at the start, so that the first steps are not all about their size.
        return nn.Dense(self.classes, use_bias=False)(x.astype(jnp.float32)) / 9


class ResNet20(nn.Module):
    """The CIFAR-10 network of He et al. (2015, https://arxiv.org/abs/1512.03385)."""

    norm: Norm = "batch"
    place: Place = "before"
    momentum: float = 0.9
    dtype: Any = jnp.float32
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Logits (N, classes) of images (N, H, W, channels)."""

        def conv(features: int, x: jax.Array, **options: Any) -> jax.Array:
            layer = NormalizedConv(
                features, self.norm, self.place, self.momentum, self.dtype, **options
            )
            return layer(x, train, mask)

        x = conv(16, x.astype(self.dtype))
        for width in (16, 32, 64):
            for _ in range(3):
                strides = 1 if x.shape[-1] == width else 2
                y = conv(width, conv(width, x, strides=strides), activation=False)
                # Where the shape changes, the shortcut takes every other pixel and pads the channels.
                shortcut = x[:, ::strides, ::strides]
                x = nn.relu(y + jnp.pad(shortcut, [(0, 0)] * 3 + [(0, width - x.shape[-1])]))
        x = x.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.classes)(x)


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
