"""What is compiled: norms alone, norms between the layers that they meet in models, and training steps.

Each program is written once, and takes the norms of Flax Linen or of jaxnorm; all else in it is Flax's.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import linen as jnl

Library: TypeAlias = Literal["Flax", "jaxnorm"]
LIBRARIES: dict[Library, ModuleType] = {"Flax": nn, "jaxnorm": jnl}
Phase: TypeAlias = Literal["evaluation", "forward", "both"]
PHASES: tuple[Phase, ...] = ("evaluation", "forward", "both")
AXIS = "batch"  # of the devices
NORMS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")

CONVOLUTIONS = ((128, 56, 56, 256), (256, 7, 7, 2048))
ROWS = ((8192, 4096), (128, 197, 384))
IMAGES = ((64, 56, 56, 256), (16, 64, 64, 320))
SHAPES = {
    "BatchNorm": CONVOLUTIONS,
    "LayerNorm": ROWS,
    "RMSNorm": ROWS,
    "GroupNorm": IMAGES,
    "InstanceNorm": IMAGES,
}
# What must be read and written, in sizes of x: rows stay on the chip, other statistics take a pass.
FLOORS: dict[str, dict[Phase, int]] = {
    "BatchNorm": {"evaluation": 2, "forward": 3, "both": 8},
    "LayerNorm": {"forward": 2, "both": 5},
    "RMSNorm": {"forward": 2, "both": 5},
    "GroupNorm": {"forward": 3, "both": 8},
    "InstanceNorm": {"forward": 3, "both": 8},
}


class Program(NamedTuple):
    """A function of abstract arrays, and the size that its bytes are measured in."""

    name: str
    dtype: str
    phase: Phase
    of: Callable[[Library], tuple[Callable[..., Any], tuple[Any, ...]]]
    unit: int  # bytes
    floor: int | None = None
    chips: int = 1
    mapped: bool = False  # over the chips by shard_map, and not by the compiler


def layer(library: Library, name: str, dtype: Any, *, train: bool = True, **more: Any) -> nn.Module:
    """A norm of a library that computes in ``dtype``."""
    options: dict[str, Any] = {"dtype": dtype, **more}
    if name == "BatchNorm":
        options["use_running_average"] = not train
    if name == "GroupNorm":
        options["num_groups"] = 32
    return getattr(LIBRARIES[library], name)(**options)


def steps_of(model: nn.Module, phase: Phase, *shaped: Any) -> tuple[Callable[..., Any], Any]:
    """A program of a model: what it gives for inputs of these shapes, and its gradients.

    Between forward and backward stands a barrier, as if the rest of a network stood there: or else a
    compiler would compute y again in the sums of the backward pass.
    """
    y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), *shaped)
    params, state = (
        variables.get("params", {}),
        {k: v for k, v in variables.items() if k != "params"},
    )
    mutable = list(state) if phase != "evaluation" else []

    def forward(params: Any, state: Any, *inputs: Any) -> Any:
        return model.apply({"params": params, **state}, *inputs, mutable=mutable)

    if phase != "both":
        return forward, (params, state, *shaped)

    def both(params: Any, state: Any, dy: Any, *inputs: Any) -> Any:
        y, pull, updated = jax.vjp(
            lambda params, *inputs: forward(params, state, *inputs), params, *inputs, has_aux=True
        )
        y, dy = lax.optimization_barrier((y, dy))
        return y, pull(dy), updated

    return both, (params, state, y, *shaped)


# --- norms alone ---------------------------------------------------------------------------------


def norms(names: tuple[str, ...], dtypes: tuple[str, ...], *, quick: bool) -> Iterator[Program]:
    """Every norm: evaluation, forward in training, forward and backward."""
    for name in names:
        for shape in SHAPES[name][: 1 if quick else None]:
            for dtype in dtypes:
                x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
                for phase, floor in FLOORS[name].items():

                    def of(
                        library: Library, x: Any = x, phase: Any = phase, name: str = name
                    ) -> Any:
                        module = layer(library, name, x.dtype, train=phase != "evaluation")
                        return steps_of(module, phase, x)

                    unit = math.prod(shape) * x.dtype.itemsize
                    yield Program(f"{name} {shape}", dtype, phase, of, unit, floor)


# --- norms over many devices ---------------------------------------------------------------------


def sync(counts: tuple[int, ...]) -> Iterator[Program]:
    """Batch norm whose statistics are those of all devices, each of which holds part of the batch."""
    for chips, mapped in itertools.product(counts, (False, True)):
        x = jax.ShapeDtypeStruct((64 * chips, 28, 28, 256), jnp.bfloat16)
        for phase in ("forward", "both"):

            def of(library: Library, x: Any = x, phase: Any = phase, mapped: bool = mapped) -> Any:
                axis: dict[str, Any] = {"axis_name": AXIS} if mapped else {}
                return steps_of(layer(library, "BatchNorm", x.dtype, **axis), phase, x)

            name = f"BatchNorm, {chips} devices, {'shard_map' if mapped else 'jit'}"
            unit = math.prod(x.shape) // chips * x.dtype.itemsize
            yield Program(name, x.dtype.name, phase, of, unit, None, chips, mapped)


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
    "ViT-S": (Transformer, (64, 197, 384)),
    "GPT, RMSNorm": (partial(Transformer, norm="RMSNorm"), (8, 1024, 384)),
    "U-Net": (UNetBlock, (16, 64, 64, 320)),
}
FULL: dict[str, dict[str, Any]] = {
    "ResNet-50": {"depths": (3, 4, 6, 3)},
    'ResNet-50, activation="relu"': {"depths": (3, 4, 6, 3)},
    "ViT-S": {"depth": 12},
    "GPT, RMSNorm": {"depth": 12},
}


def steps(dtypes: tuple[str, ...], *, full: bool) -> Iterator[Program]:
    """Loss, gradients and updated statistics, at reduced depth unless ``full``."""
    for name, (model, shape) in STEPS.items():
        dtype = dtypes[0]
        x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        depth = FULL.get(name, {}) if full else {}

        def of(library: Library, x: Any = x, model: Any = model, depth: Any = depth) -> Any:
            return loss_of(model(library=library, dtype=x.dtype, **depth), x)

        yield Program(name, dtype, "both", of, math.prod(shape) * x.dtype.itemsize)


def loss_of(model: nn.Module, x: Any) -> tuple[Callable[..., Any], Any]:
    """A training step without the optimizer."""
    forward, (params, state, _) = steps_of(model, "forward", x)

    def step(params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            y, updated = forward(params, state, x)
            return (y.astype(jnp.float32) ** 2).mean(), updated

        return jax.value_and_grad(loss, has_aux=True)(params)

    return step, (params, state, x)
