"""Small models of the families that people train, in NNX."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm import nnx as jnx

X: TypeAlias = jax.Array


class ConvNorm(nnx.Module):
    """A convolution and a batch norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.conv = nnx.Conv(inputs, outputs, (size, size), stride, use_bias=False, rngs=rngs)
        self.norm = jnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: X, train: bool) -> X:
        """Returns the activations before the nonlinearity."""
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
