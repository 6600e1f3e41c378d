"""What is compiled of norms alone, on one device and on many.

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
    floor: float | None = None
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


class Activated(nn.Module):
    """Batch norm and relu, as one where the library has that; what follows reads the result once or twice."""

    library: Library
    dtype: Any
    branches: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Shape as x, for each branch."""
        if self.library == "jaxnorm":
            y = layer(self.library, "BatchNorm", self.dtype, activation="relu")(x)
        else:
            y = nn.relu(layer(self.library, "BatchNorm", self.dtype)(x))
        return (y,) * self.branches


def activated(dtypes: tuple[str, ...], *, quick: bool) -> Iterator[Program]:
    """Batch norm with `activation="relu"`, forward and backward."""
    for branches, shape, dtype in itertools.product(
        (1, 2), CONVOLUTIONS[: 1 if quick else None], dtypes
    ):
        x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

        def of(library: Library, x: Any = x, branches: int = branches) -> Any:
            return steps_of(Activated(library, x.dtype, branches), "both", x)

        reads = "" if branches == 1 else ", read by two"
        name = f'BatchNorm, activation="relu"{reads} {shape}'
        unit = math.prod(shape) * x.dtype.itemsize
        yield Program(name, dtype, "both", of, unit, 8 + 2 * (branches - 1))


# --- norms with what comes before or after them, in one pass ---------------------------------------


class Added(nn.Module):
    """The norm of x + residual, and the sum: the residual stream of a transformer.

    With ``dense``, x is what a dense layer makes of its input, as in a model.
    """

    library: Library
    norm: str
    dtype: Any
    dense: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array) -> Any:
        """Two arrays like x."""
        if self.dense:
            x = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype)(x)
        if self.library == "jaxnorm":
            return layer(self.library, f"Add{self.norm}", self.dtype)(x, residual)
        x = x + residual
        return layer(self.library, self.norm, self.dtype)(x), x


class Gated(nn.Module):
    """RMS norm, times silu of a gate."""

    library: Library
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        """Shape as x."""
        if self.library == "jaxnorm":
            return layer(self.library, "GatedRMSNorm", self.dtype)(x, gate)
        return layer(self.library, "RMSNorm", self.dtype)(x) * nn.silu(gate)


class Silu(nn.Module):
    """Group norm and silu, as one where the library has that."""

    library: Library
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Shape as x."""
        if self.library == "jaxnorm":
            return layer(self.library, "GroupNorm", self.dtype, activation="silu")(x)
        return nn.silu(layer(self.library, "GroupNorm", self.dtype)(x))


# The module, its shapes, the number of inputs, and what must be read and written forward and in total, except
# for parameters. A dense layer can add the residual to its result before it stores it: then x is not stored.
FUSED: dict[str, tuple[Callable[..., nn.Module], Any, int, tuple[int, int]]] = {
    "x + residual, RMSNorm": (partial(Added, norm="RMSNorm"), ROWS, 2, (4, 8)),
    "x + residual, LayerNorm": (partial(Added, norm="LayerNorm"), ROWS, 2, (4, 8)),
    "dense + residual, RMSNorm": (partial(Added, norm="RMSNorm", dense=True), ROWS, 2, (5, 13)),
    "dense + residual, LayerNorm": (
        partial(Added, norm="LayerNorm", dense=True),
        ROWS,
        2,
        (5, 13),
    ),
    "RMSNorm · silu(gate)": (Gated, ROWS, 2, (3, 8)),
    'GroupNorm, activation="silu"': (Silu, IMAGES, 1, (3, 8)),
}


def fused(dtypes: tuple[str, ...], *, quick: bool) -> Iterator[Program]:
    """Norms with a sum before them, or an activation or a gate after them."""
    for name, (module, shapes, inputs, floors) in FUSED.items():
        for shape, dtype in itertools.product(shapes[: 1 if quick else None], dtypes):
            xs = (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),) * inputs
            unit = math.prod(shape) * xs[0].dtype.itemsize
            phases: tuple[Phase, ...] = ("forward", "both")
            for phase, floor in zip(phases, floors, strict=True):

                def of(
                    library: Library, module: Any = module, xs: Any = xs, phase: Any = phase
                ) -> Any:
                    return steps_of(module(library=library, dtype=xs[0].dtype), phase, *xs)

                if "dense" in name:  # the kernel is read, read again, and its gradient written
                    floor += (1 if phase == "forward" else 3) * 4 * shape[-1] ** 2 / unit
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
