"""The benchmark cases: norms, phases, dtypes and shapes, and the least that a norm must read and write."""

import math
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np

Norm: TypeAlias = Literal["batch", "layer", "rms", "group", "instance"]
Phase: TypeAlias = Literal["eval", "forward", "both"]
Size: TypeAlias = Literal["large", "odd", "small"]
Dtype: TypeAlias = Literal["float32", "bfloat16"]
NORMS: tuple[Norm, ...] = get_args(Norm)
PHASES: tuple[Phase, ...] = get_args(Phase)
SIZES: tuple[Size, ...] = get_args(Size)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
EPSILON = 1e-5

# In multiples of the size of x: forward reads x and writes y, backward reads x and dy and writes dx. If
# statistics are over more elements than fit in a core's cache, their inputs are read twice.
FLOORS: dict[Norm, dict[Phase, int]] = {
    "batch": {"eval": 2, "forward": 3, "both": 8},
    "layer": {"forward": 2, "both": 5},
    "rms": {"forward": 2, "both": 5},
    "group": {"forward": 3, "both": 8},
    "instance": {"forward": 3, "both": 8},
}

# Large: megabytes and even lengths, as in training. Odd: lengths with few or no factors of two.
IN_BATCHES: dict[Size, tuple[tuple[int, ...], ...]] = {
    "large": (
        (64, 28, 28, 48),
        (96, 14, 14, 160),
        (128, 8, 8, 256),
        (128, 32, 32, 32),
        (4096, 512),
        (256, 4, 4, 512),
    ),
    "odd": ((40009, 64), (32, 7, 7, 1000), (1023, 200)),
    "small": ((1, 7, 7, 1000),),
}
IN_EXAMPLES: dict[Size, tuple[tuple[int, ...], ...]] = {
    "large": ((24, 28, 28, 128), (24, 40, 40, 64), (8, 64, 64, 64)),
    "odd": ((32, 7, 7, 512), (1, 33, 17, 96)),
    "small": ((16, 8, 8, 256),),
}
IN_ROWS: dict[Size, tuple[tuple[int, ...], ...]] = {
    "large": ((6144, 640), (1536, 3072), (4096, 1024)),
    "odd": ((8, 197, 768), (1023, 1000), (64, 197, 192)),
    "small": ((16, 128, 256), (1, 4096)),
}
SHAPES: dict[Norm, dict[Size, tuple[tuple[int, ...], ...]]] = {
    "batch": IN_BATCHES,
    "layer": IN_ROWS,
    "rms": IN_ROWS,
    "group": IN_EXAMPLES,
    "instance": IN_EXAMPLES,
}


class Case(NamedTuple):
    """A norm applied to an activation, channels last."""

    norm: Norm
    shape: tuple[int, ...]
    size: Size

    @property
    def num_groups(self) -> int:
        """The greatest common divisor of 32 and the number of channels."""
        return math.gcd(32, self.shape[-1])


class Data(NamedTuple):
    """The inputs of a norm: running statistics for batch norm only, and no bias for RMS norm."""

    x: Any
    parameters: tuple[Any, ...]
    stats: tuple[Any, ...]
    dy: Any


def cases(norms: tuple[Norm, ...], sizes: tuple[Size, ...], quick: bool = False) -> list[Case]:
    """Returns all cases of these norms and sizes; with `quick`, only the first shape of each size."""
    return [
        Case(norm, shape, size)
        for norm in norms
        for size in sizes
        for shape in SHAPES[norm][size][: 1 if quick else None]
    ]


def draw(case: Case, dtype: Dtype) -> Data:
    """Draws normally distributed inputs: x and dy in this dtype, the rest in float32."""
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(std) + np.float32(mean)

    channels = case.shape[-1:]
    parameters = normal(channels, 1, 0.1), normal(channels, 0, 0.1)
    stats = normal(channels, 0.5, 0.1), np.abs(normal(channels, 1, 0.1))
    return Data(
        normal(case.shape, 0.5).astype(jnp.dtype(dtype)),
        parameters[:1] if case.norm == "rms" else parameters,
        stats if case.norm == "batch" else (),
        normal(case.shape).astype(jnp.dtype(dtype)),
    )
