"""Image models as timm has them, in Linen, with the names of its layers: whole if the sizes are timm's."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnorm import linen as jnl

X: TypeAlias = jax.Array


class ConvNorm(nn.Module):
    """timm's ConvNormAct: a convolution and a batch norm, called ``conv`` and ``bn``."""

    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    groups: int = 1
    activation: str | None = "relu"
    epsilon: float = 1e-5
    padding: Any = None  # None is PyTorch's for an odd kernel

    @nn.compact
    def __call__(self, x: X, train: bool) -> X:
        """Returns the activations."""
        x = conv(self.features, self.kernel, self.stride, self.groups, self.padding, name="conv")(x)
        return batch_norm(train, self.activation, self.epsilon, name="bn")(x)


def conv(
    features: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    padding: Any = None,
    **options: Any,
) -> nn.Conv:
    """A convolution with PyTorch's padding and no bias."""
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    even = [(k // 2, k // 2) for k in size] if padding is None else padding
    options = {"use_bias": False, **options}
    return nn.Conv(features, size, stride, padding=even, feature_group_count=groups, **options)


def batch_norm(
    train: bool, activation: str | None = None, epsilon: float = 1e-5, **options: Any
) -> jnl.BatchNorm:
    """PyTorch's batch norm."""
    options = {"epsilon": epsilon, "activation": activation, **options}
    return jnl.BatchNorm(not train, momentum=0.9, unbiased=True, **options)


class SqueezeExcite(nn.Module):
    """Gates of the channels, from their means over the image."""

    hidden: int
    gate: Any
    names: tuple[str, str]

    @nn.compact
    def __call__(self, x: X) -> X:
        """Returns the gated activations."""
        gates = x.mean((1, 2), keepdims=True)
        gates = nn.relu(conv(self.hidden, 1, use_bias=True, name=self.names[0])(gates))
        return x * self.gate(conv(x.shape[-1], 1, use_bias=True, name=self.names[1])(gates))


# --- RegNetY ----------------------------------------------------------------------------------------


class RegNetBlock(nn.Module):
    """A bottleneck with a grouped convolution and squeeze-and-excite."""

    features: int
    stride: int
    group_size: int

    @nn.compact
    def __call__(self, x: X, train: bool) -> X:
        """Returns the activations after the block."""
        width, inputs = self.features, x.shape[-1]
        y = ConvNorm(width, name="conv1")(x, train)
        y = ConvNorm(width, 3, self.stride, width // self.group_size, name="conv2")(y, train)
        y = SqueezeExcite(round(inputs / 4), nn.sigmoid, ("fc1", "fc2"), name="se")(y)
        y = ConvNorm(width, activation=None, name="conv3")(y, train)
        if self.stride > 1 or inputs != width:
            shortcut = ConvNorm(width, 1, self.stride, activation=None, name="downsample")
            x = shortcut(x, train)
        return nn.relu(x + y)


class RegNet(nn.Module):
    """timm's regnety_002, if the sizes are left as they are."""

    depths: Sequence[int] = (1, 1, 4, 7)
    widths: Sequence[int] = (24, 56, 152, 368)
    group_size: int = 8
    stem: int = 32
    classes: int = 1000

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = ConvNorm(self.stem, 3, 2, name="stem")(x, train)
        for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for b in range(1, depth + 1):
                block = RegNetBlock(width, 2 if b == 1 else 1, self.group_size, name=f"s{s}_b{b}")
                x = block(x, train)
        return nn.Dense(self.classes, name="head_fc")(x.mean((1, 2)))


# --- MobileNetV3 ------------------------------------------------------------------------------------


class InvertedResidual(nn.Module):
    """Expands, convolves each channel, gates, and projects; without ``expanded`` it does not expand."""

    features: int
    kernel: int
    stride: int
    expanded: int | None
    gated: int | None
    activation: Any

    @nn.compact
    def __call__(self, x: X, train: bool) -> X:
        """Returns the activations after the block."""
        y, n = x, 1
        if self.expanded is not None:
            y = self.activation(
                batch_norm(train, name="bn1")(conv(self.expanded, 1, name="conv_pw")(y))
            )
            n = 2
        width = y.shape[-1]
        y = conv(width, self.kernel, self.stride, width, name="conv_dw")(y)
        y = self.activation(batch_norm(train, name=f"bn{n}")(y))
        if self.gated is not None:
            names = "conv_reduce", "conv_expand"
            y = SqueezeExcite(self.gated, nn.hard_sigmoid, names, name="se")(y)
        y = conv(self.features, 1, name="conv_pw" if self.expanded is None else "conv_pwl")(y)
        y = batch_norm(train, name=f"bn{n + 1}")(y)
        return x + y if x.shape == y.shape else y


def _stages() -> tuple[Any, ...]:
    relu, swish = nn.relu, nn.hard_swish
    return (
        ((16, 3, 2, None, 8, relu),),
        ((24, 3, 2, 72, None, relu), (24, 3, 1, 88, None, relu)),
        ((40, 5, 2, 96, 24, swish), (40, 5, 1, 240, 64, swish), (40, 5, 1, 240, 64, swish)),
        ((48, 5, 1, 120, 32, swish), (48, 5, 1, 144, 40, swish)),
        ((96, 5, 2, 288, 72, swish), (96, 5, 1, 576, 144, swish), (96, 5, 1, 576, 144, swish)),
    )


class MobileNetV3(nn.Module):
    """timm's mobilenetv3_small_100, if the sizes are left as they are."""

    stages: Any = field(default_factory=_stages)
    last: int = 576
    head: int = 1024
    classes: int = 1000

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = nn.hard_swish(batch_norm(train, name="bn1")(conv(16, 3, 2, name="conv_stem")(x)))
        for s, stage in enumerate(self.stages):
            for b, block in enumerate(stage):
                x = InvertedResidual(*block, name=f"blocks_{s}_{b}")(x, train)
        last = f"blocks_{len(self.stages)}_0"
        x = ConvNormAct1(self.last, name=last)(x, train)
        x = x.mean((1, 2), keepdims=True)
        x = nn.hard_swish(conv(self.head, 1, use_bias=True, name="conv_head")(x))
        return nn.Dense(self.classes, name="classifier")(x.reshape(x.shape[0], -1))


class ConvNormAct1(nn.Module):
    """The last block of MobileNetV3."""

    features: int

    @nn.compact
    def __call__(self, x: X, train: bool) -> X:
        """Returns the activations."""
        return nn.hard_swish(batch_norm(train, name="bn1")(conv(self.features, 1, name="conv")(x)))


# --- Inception --------------------------------------------------------------------------------------


class InceptionA(nn.Module):
    """The first kind of block of timm's inception_v3: four branches side by side."""

    pooled: int
    widths: Sequence[int] = (64, 48, 64, 96)

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns the branches, concatenated."""
        a, b, c, d = self.widths

        def layer(name: str, features: int, kernel: int, x: X) -> X:
            return ConvNorm(features, kernel, epsilon=1e-3, name=name)(x, train)

        one = layer("branch1x1", a, 1, x)
        five = layer("branch5x5_2", c, 5, layer("branch5x5_1", b, 1, x))
        three = layer("branch3x3dbl_2", d, 3, layer("branch3x3dbl_1", c, 1, x))
        three = layer("branch3x3dbl_3", d, 3, three)
        even: Any = ((1, 1), (1, 1))
        pool = nn.avg_pool(x, (3, 3), padding=even)
        pool = layer("branch_pool", self.pooled, 1, pool)
        return jnp.concatenate([one, five, three, pool], axis=-1)


# --- ConvNeXt ---------------------------------------------------------------------------------------


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, layer norm, an MLP, and LayerScale."""

    @nn.compact
    def __call__(self, x: X) -> X:
        """Returns the activations after the block."""
        width = x.shape[-1]
        y = conv(width, 7, groups=width, use_bias=True, name="conv_dw")(x)
        y = jnl.LayerNorm(name="norm")(y)
        y = nn.gelu(conv(4 * width, 1, use_bias=True, name="mlp_fc1")(y), approximate=False)
        y = conv(width, 1, use_bias=True, name="mlp_fc2")(y)
        return x + jnl.LayerScale(name="scale")(y)


class ConvNeXt(nn.Module):
    """timm's convnext_atto, if the sizes are left as they are."""

    depths: Sequence[int] = (2, 2, 6, 2)
    widths: Sequence[int] = (40, 80, 160, 320)
    classes: int = 1000

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits; it does not matter whether it trains."""
        del train
        for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            kernel = 2 if s else 4
            down = conv(
                width, kernel, kernel, padding="VALID", use_bias=True, name=self._layer(s, 1)
            )
            norm = jnl.LayerNorm(name=self._layer(s, 0))
            x = down(norm(x)) if s else norm(down(x))
            for b in range(depth):
                x = ConvNeXtBlock(name=f"stages_{s}_blocks_{b}")(x)
        x = jnl.LayerNorm(name="head_norm")(x.mean((1, 2)))
        return nn.Dense(self.classes, name="head_fc")(x)

    def _layer(self, stage: int, place: int) -> str:
        """The convolution and the norm of the stem, and of the other stages in the other order."""
        return f"stages_{stage}_downsample_{place}" if stage else f"stem_{1 - place}"

    @property
    def names(self) -> dict[str, str]:
        """The scales that timm keeps in the blocks."""
        blocks = [(s, b) for s, depth in enumerate(self.depths) for b in range(depth)]
        return {
            f"stages_{s}_blocks_{b}/scale/scale": f"stages.{s}.blocks.{b}.gamma" for s, b in blocks
        }
