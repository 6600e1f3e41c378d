"""Small models of the families that people train, in NNX."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm import nnx as jnx

X: TypeAlias = jax.Array


class ConvNorm(nnx.Module):
    """A convolution, a batch norm and, if given, an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        rngs: nnx.Rngs,
        *,
        groups: int = 1,
        activation: Any = None,
    ) -> None:
        """Creates the layers."""
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            stride,
            feature_group_count=groups,
            use_bias=False,
            rngs=rngs,
        )
        self.norm = jnx.BatchNorm(outputs, activation=activation, rngs=rngs)

    def __call__(self, x: X, train: bool) -> X:
        """Returns the activations."""
        return self.norm(self.conv(x), use_running_average=not train)


class ResNet(nnx.Module):
    """A stem, a residual block with a shortcut of its own, and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.stem = ConvNorm(3, 8, 3, 1, rngs)
        self.first, self.second = ConvNorm(8, 16, 3, 2, rngs), ConvNorm(16, 16, 3, 1, rngs)
        self.shortcut = ConvNorm(8, 16, 1, 2, rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = nnx.relu(self.stem(x, train))
        y = self.second(nnx.relu(self.first(x, train)), train)
        return self.head(nnx.relu(y + self.shortcut(x, train)).mean((1, 2)))


class SqueezeExcite(nnx.Module):
    """Gates of the channels, from their means over the image."""

    def __init__(self, features: int, hidden: int, gate: Any, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.gate = gate
        self.reduce = nnx.Linear(features, hidden, rngs=rngs)
        self.expand = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x: X) -> X:
        """Returns the gated activations."""
        gates = nnx.relu(self.reduce(x.mean((1, 2), keepdims=True)))
        return x * self.gate(self.expand(gates))


class RegNet(nnx.Module):
    """A stem, a bottleneck with a grouped convolution and squeeze-and-excite, and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.stem = ConvNorm(3, 8, 3, 2, rngs, activation="relu")
        self.first = ConvNorm(8, 16, 1, 1, rngs, activation="relu")
        self.second = ConvNorm(16, 16, 3, 2, rngs, groups=2, activation="relu")
        self.gate = SqueezeExcite(16, 2, nnx.sigmoid, rngs)
        self.third, self.shortcut = ConvNorm(16, 16, 1, 1, rngs), ConvNorm(8, 16, 1, 2, rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = self.stem(x, train)
        y = self.gate(self.second(self.first(x, train), train))
        x = nnx.relu(self.third(y, train) + self.shortcut(x, train))
        return self.head(x.mean((1, 2)))


class MobileNetV3(nnx.Module):
    """A stem, an inverted residual and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.stem = ConvNorm(3, 16, 3, 2, rngs)
        self.wide = ConvNorm(16, 32, 1, 1, rngs)
        self.depthwise = ConvNorm(32, 32, 5, 1, rngs, groups=32)
        self.gate = SqueezeExcite(32, 8, nnx.hard_sigmoid, rngs)
        self.narrow = ConvNorm(32, 16, 1, 1, rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = nnx.hard_swish(self.stem(x, train))
        y = nnx.hard_swish(self.wide(x, train))
        y = self.gate(nnx.hard_swish(self.depthwise(y, train)))
        return self.head((x + self.narrow(y, train)).mean((1, 2)))


class DenseNet(nnx.Module):
    """Batch norm before each convolution, which reads all earlier outputs."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([jnx.BatchNorm(n, rngs=rngs) for n in (8, 8, 12, 8, 16)])
        sizes = [(8, 8, 1), (8, 4, 3), (12, 8, 1), (8, 4, 3)]
        self.convs = nnx.List(
            [nnx.Conv(i, o, (k, k), use_bias=False, rngs=rngs) for i, o, k in sizes]
        )
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""

        def normalized(i: int, x: X) -> X:
            return nnx.relu(self.norms[i](x, use_running_average=not train))

        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](normalized(i, x))
            y = self.convs[i + 1](normalized(i + 1, y))
            x = jnp.concatenate([x, y], axis=-1)
        return self.head(normalized(4, x).mean((1, 2)))


class Inception(nnx.Module):
    """A stem, a block of four branches and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""

        def branch(*sizes: tuple[int, int, int]) -> nnx.List[ConvNorm]:
            return nnx.List([ConvNorm(i, o, k, 1, rngs, activation="relu") for i, o, k in sizes])

        self.stem = ConvNorm(3, 8, 3, 2, rngs, activation="relu")
        self.one, self.pooled = branch((8, 4, 1)), branch((8, 4, 1))
        self.five = branch((8, 4, 1), (4, 6, 5))
        self.three = branch((8, 6, 1), (6, 6, 3), (6, 6, 3))
        self.head = nnx.Linear(20, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = self.stem(x, train)
        even: Any = ((1, 1), (1, 1))
        inputs = (x, x, x, nnx.avg_pool(x, (3, 3), padding=even))
        outputs = []
        for y, layers in zip(inputs, (self.one, self.five, self.three, self.pooled), strict=True):
            for layer in layers:
                y = layer(y, train)
            outputs.append(y)
        return self.head(jnp.concatenate(outputs, axis=-1).mean((1, 2)))


class ConvNeXt(nnx.Module):
    """A stem, a block of a depthwise convolution, layer norm, an MLP and LayerScale, and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.stem = nnx.Conv(3, 8, (4, 4), 4, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (7, 7), feature_group_count=8, rngs=rngs)
        self.norms = nnx.List([jnx.LayerNorm(8, rngs=rngs) for _ in range(3)])
        self.wide, self.narrow = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)
        self.scale = jnx.LayerScale(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits; it does not matter whether it trains."""
        del train
        x = self.norms[0](self.stem(x))
        y = self.norms[1](self.depthwise(x))
        x = x + self.scale(self.narrow(nnx.gelu(self.wide(y), approximate=False)))
        return self.head(self.norms[2](x.mean((1, 2))))


class Generator(nnx.Module):
    """A GAN's generator: transposed convolutions and batch norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.project = nnx.Linear(8, 128, use_bias=False, rngs=rngs)
        self.bn0 = jnx.BatchNorm(8, activation="relu", rngs=rngs)
        self.up1 = nnx.ConvTranspose(8, 8, (4, 4), (2, 2), use_bias=False, rngs=rngs)
        self.bn1 = jnx.BatchNorm(8, activation="relu", rngs=rngs)
        self.image = nnx.Conv(8, 3, (3, 3), rngs=rngs)

    def __call__(self, z: X, train: bool = False) -> X:
        """Returns images."""
        x = self.bn0(self.project(z).reshape(-1, 4, 4, 8), use_running_average=not train)
        return jnp.tanh(self.image(self.bn1(self.up1(x), use_running_average=not train)))


class UNet(nnx.Module):
    """A small U-Net with group norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norms = nnx.List([jnx.GroupNorm(8, 4, rngs=rngs), jnx.GroupNorm(16, 4, rngs=rngs)])
        self.down = nnx.Conv(8, 8, (3, 3), (2, 2), rngs=rngs)
        self.last = nnx.Conv(16, 3, (3, 3), rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns an image; it does not matter whether it trains."""
        del train
        high = self.first(x)
        low = self.down(nnx.silu(self.norms[0](high)))
        low = jax.image.resize(low, high.shape, "nearest")
        return self.last(nnx.silu(self.norms[1](jnp.concatenate([high, low], axis=-1))))


class Discriminator(nnx.Module):
    """A GAN's discriminator: convolutions with spectral norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        convs = [nnx.Conv(3, 8, (4, 4), 2, rngs=rngs), nnx.Conv(8, 16, (4, 4), 2, rngs=rngs)]
        self.layers = nnx.List([jnx.SpectralNorm(conv, rngs=rngs) for conv in convs])
        self.head = jnx.SpectralNorm(nnx.Linear(16 * 4 * 4, 1, rngs=rngs), rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns one number for each image."""
        for layer in self.layers:
            x = nnx.leaky_relu(layer(x, update_stats=train), 0.2)
        return self.head(x.reshape(x.shape[0], -1), update_stats=train)


class Transformer(nnx.Module):
    """A pre-norm transformer: layer norm as in a ViT, or RMS norm as in language models."""

    def __init__(self, rngs: nnx.Rngs, norm: Any = jnx.LayerNorm) -> None:
        """Creates the layers."""
        self.norms = nnx.List([norm(8, rngs=rngs) for _ in range(3)])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(8, 16, rngs=rngs), nnx.gelu, nnx.Linear(16, 8, rngs=rngs)
        )
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits; it does not matter whether it trains."""
        del train
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


class NormedLSTMCell(nnx.RNNCellBase):
    """An LSTM cell with layer norm (Ba et al., 2016)."""

    def __init__(self, features: int, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.features = features
        self.input = nnx.Linear(features, 4 * features, rngs=rngs)
        self.state = nnx.Linear(features, 4 * features, rngs=rngs)
        self.input_norm = jnx.LayerNorm(4 * features, rngs=rngs)
        self.state_norm = jnx.LayerNorm(4 * features, rngs=rngs)
        self.cell_norm = jnx.LayerNorm(features, rngs=rngs)

    def __call__(self, carry: tuple[X, X], x: X) -> tuple[tuple[X, X], X]:
        """Returns the new state and its output."""
        c, h = carry
        gates = self.input_norm(self.input(x)) + self.state_norm(self.state(h))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nnx.sigmoid(f + 1) * c + nnx.sigmoid(i) * jnp.tanh(g)
        h = nnx.sigmoid(o) * jnp.tanh(self.cell_norm(c))
        return (c, h), h

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> tuple[X, X]:
        """The state before the first step."""
        zeros = jnp.zeros((*input_shape[:-1], self.features))
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


class LSTM(nnx.Module):
    """A recurrent network over words."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.rnn = nnx.RNN(NormedLSTMCell(8, rngs), rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits; it does not matter whether it trains."""
        del train
        outputs: Any = self.rnn(x)
        return self.head(outputs[:, -1])


class Actor(nnx.Module):
    """CrossQ's network: batch renorm before every dense layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        options: Any = {"form": "crossq", "rmax": 3.0, "dmax": 5.0}
        self.norms = nnx.List([jnx.BatchRenorm(8, **options, rngs=rngs) for _ in range(2)])
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: X, train: bool = False) -> X:
        """Returns actions."""
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = nnx.relu(layer(norm(x, use_running_average=not train)))
        return self.head(x)
