"""Small models of the families that people train, in Linen and NNX, with random arrays."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.models import ResNet20
from jaxnorm import linen as jnl, nnx as jnx
from tests.tools import families_nnx, timm_models as timm

X: TypeAlias = jax.Array
IMAGES = np.random.default_rng(0).normal(0.5, 2, (8, 16, 16, 3)).astype(np.float32)
WORDS = np.random.default_rng(1).normal(size=(8, 6, 8)).astype(np.float32)
NOISE = WORDS[:, 0]


class DenseNet(nn.Module):
    """Batch norm before each convolution, which reads all earlier outputs."""

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = timm.conv(8, 3, name="conv0")(x)
        for i in range(2):
            y = timm.conv(8, 1, name=f"conv{i}_1")(timm.batch_norm(train, "relu")(x))
            y = timm.conv(4, 3, name=f"conv{i}_2")(timm.batch_norm(train, "relu")(y))
            x = jnp.concatenate([x, y], axis=-1)
        x = nn.relu(timm.batch_norm(train, name="norm")(x))
        return nn.Dense(4)(x.mean((1, 2)))


class Inception(nn.Module):
    """A stem, a block of branches and a head."""

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits."""
        x = timm.ConvNorm(8, 3, 2, name="stem")(x, train)
        x = timm.InceptionA(4, (4, 4, 6, 6), name="block")(x, train)
        return nn.Dense(4)(x.mean((1, 2)))


class Generator(nn.Module):
    """A GAN's generator: transposed convolutions and batch norm."""

    @nn.compact
    def __call__(self, z: X, train: bool = False) -> X:
        """Returns images."""
        x = nn.Dense(4 * 4 * 8, use_bias=False, name="project")(z).reshape(-1, 4, 4, 8)
        x = timm.batch_norm(train, "relu", name="bn0")(x)
        for i, features in enumerate((8, 4), 1):
            up = nn.ConvTranspose(features, (4, 4), (2, 2), use_bias=False, name=f"up{i}")
            x = timm.batch_norm(train, "relu", name=f"bn{i}")(up(x))
        return jnp.tanh(nn.Conv(3, (3, 3), name="image")(x))


class Discriminator(nn.Module):
    """A GAN's discriminator: convolutions with spectral norm."""

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns one number for each image."""
        for i, features in enumerate((8, 16)):
            layer = jnl.SpectralNorm(nn.Conv(features, (4, 4), (2, 2), name=f"conv{i}"))
            x = nn.leaky_relu(layer(x, update_stats=train), 0.2)
        head = jnl.SpectralNorm(nn.Dense(1, name="head"))
        return head(x.reshape(x.shape[0], -1), update_stats=train)


class UNetBlock(nn.Module):
    """Group norm, silu and convolution, twice, with the embedded time in between."""

    features: int

    @nn.compact
    def __call__(self, x: X, time: X) -> X:
        """Returns the activations after the block."""
        y = nn.Conv(self.features, (3, 3))(nn.silu(jnl.GroupNorm(4)(x)))
        y = y + nn.Dense(self.features)(nn.silu(time))[:, None, None]
        y = nn.Conv(self.features, (3, 3))(nn.silu(jnl.GroupNorm(4)(y)))
        return y + (x if x.shape == y.shape else nn.Conv(self.features, (1, 1))(x))


class UNet(nn.Module):
    """A diffusion U-Net, with one step down and up."""

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns an image; it does not matter whether it trains."""
        del train
        time = nn.Dense(16)(jnp.sin(jnp.arange(16.0)) + x.mean((1, 2, 3))[:, None])
        x = nn.Conv(8, (3, 3))(x)
        high = UNetBlock(8)(x, time)
        low = UNetBlock(16)(nn.avg_pool(high, (2, 2), (2, 2)), time)
        low = jax.image.resize(low, (*high.shape[:3], 16), "nearest")
        x = UNetBlock(8)(jnp.concatenate([high, low], axis=-1), time)
        return nn.Conv(3, (3, 3))(nn.silu(jnl.GroupNorm(4)(x)))


class NormedLSTMCell(nn.RNNCellBase):
    """An LSTM cell with layer norm (Ba et al., 2016)."""

    features: int

    @nn.compact
    def __call__(self, carry: tuple[X, X], x: X) -> tuple[tuple[X, X], X]:
        """Returns the new state and its output."""
        c, h = carry
        gates = jnl.LayerNorm(name="input_norm")(nn.Dense(4 * self.features, name="input")(x))
        gates += jnl.LayerNorm(name="state_norm")(nn.Dense(4 * self.features, name="state")(h))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f + 1) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(jnl.LayerNorm(name="cell_norm")(c))
        return (c, h), h

    @nn.nowrap
    def initialize_carry(self, rng: X, input_shape: tuple[int, ...]) -> tuple[X, X]:
        """The state before the first step."""
        zeros = jnp.zeros((*input_shape[:-1], self.features))
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


class LSTM(nn.Module):
    """A recurrent network over words."""

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits; it does not matter whether it trains."""
        del train
        outputs: Any = nn.RNN(NormedLSTMCell(8), name="rnn")(x)
        return nn.Dense(4)(outputs[:, -1])


class Transformer(nn.Module):
    """A pre-norm transformer: layer norm as in a ViT, or RMS norm and QK norm as in language models."""

    norm: Any = jnl.LayerNorm
    depth: int = 2

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns logits; it does not matter whether it trains."""
        del train
        for i in range(self.depth):
            y = self.norm(name=f"norm{i}_1")(x)
            x = x + nn.MultiHeadDotProductAttention(2, name=f"attention{i}")(y)
            y = self.norm(name=f"norm{i}_2")(x)
            x = x + nn.Dense(8, name=f"out{i}")(nn.gelu(nn.Dense(16, name=f"in{i}")(y)))
        return nn.Dense(4, name="head")(self.norm(name="norm")(x).mean(1))


class Actor(nn.Module):
    """CrossQ's network: batch renorm before every dense layer."""

    @nn.compact
    def __call__(self, x: X, train: bool = False) -> X:
        """Returns actions."""
        for i in range(2):
            norm = jnl.BatchRenorm(
                use_running_average=not train, form="crossq", rmax=3.0, dmax=5.0, name=f"norm{i}"
            )
            x = nn.relu(nn.Dense(8)(norm(x)))
        return nn.Dense(2)(x)


class Family(NamedTuple):
    """A model with its input; ``variables`` is None in NNX."""

    model: Any
    x: np.ndarray
    variables: Any


def _linen(model: nn.Module, x: np.ndarray) -> Family:
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), x, train=False)
    return Family(model, x, jax.tree.map(_moved, variables))


def _nnx(make: Callable[[nnx.Rngs], Any], x: np.ndarray) -> Family:
    graph, state = nnx.split(make(nnx.Rngs(0)))
    return Family(nnx.merge(graph, jax.tree.map(_moved, state)), x, None)


def _moved(leaf: X) -> X:
    """Changes the arrays of norms: no mean or bias is 0, no variance or scale 1, and no scale negative."""
    floating = leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf + jnp.linspace(0.1, 0.6, leaf.size, dtype=leaf.dtype) if floating else leaf


_MOBILE = (((8, 3, 2, None, 4, nn.relu),), ((8, 5, 1, 12, 4, nn.hard_swish),))

FAMILIES: dict[str, Callable[[], Family]] = {
    "ResNet": lambda: _linen(ResNet20(), IMAGES),
    "ResNet (NNX)": lambda: _nnx(families_nnx.ResNet, IMAGES),
    "RegNet": lambda: _linen(timm.RegNet((1, 2), (8, 16), 4, 8, 4), IMAGES),
    "RegNet (NNX)": lambda: _nnx(families_nnx.RegNet, IMAGES),
    "MobileNetV3, EfficientNet": lambda: _linen(timm.MobileNetV3(_MOBILE, 16, 16, 4), IMAGES),
    "MobileNetV3, EfficientNet (NNX)": lambda: _nnx(families_nnx.MobileNetV3, IMAGES),
    "DenseNet": lambda: _linen(DenseNet(), IMAGES),
    "DenseNet (NNX)": lambda: _nnx(families_nnx.DenseNet, IMAGES),
    "Inception": lambda: _linen(Inception(), IMAGES),
    "Inception (NNX)": lambda: _nnx(families_nnx.Inception, IMAGES),
    "ConvNeXt": lambda: _linen(timm.ConvNeXt((1, 1), (8, 16), 4), IMAGES),
    "ConvNeXt (NNX)": lambda: _nnx(families_nnx.ConvNeXt, IMAGES),
    "ViT": lambda: _linen(Transformer(), WORDS),
    "ViT (NNX)": lambda: _nnx(families_nnx.Transformer, WORDS),
    "GPT, Llama": lambda: _linen(Transformer(jnl.RMSNorm), WORDS),
    "GPT, Llama (NNX)": lambda: _nnx(partial(families_nnx.Transformer, norm=jnx.RMSNorm), WORDS),
    "U-Net": lambda: _linen(UNet(), IMAGES),
    "U-Net (NNX)": lambda: _nnx(families_nnx.UNet, IMAGES),
    "GAN: generator": lambda: _linen(Generator(), NOISE),
    "GAN: generator (NNX)": lambda: _nnx(families_nnx.Generator, NOISE),
    "GAN: discriminator": lambda: _linen(Discriminator(), IMAGES),
    "GAN: discriminator (NNX)": lambda: _nnx(families_nnx.Discriminator, IMAGES),
    "LSTM": lambda: _linen(LSTM(), WORDS),
    "LSTM (NNX)": lambda: _nnx(families_nnx.LSTM, WORDS),
    "CrossQ": lambda: _linen(Actor(), NOISE),
    "CrossQ (NNX)": lambda: _nnx(families_nnx.Actor, NOISE),
}
