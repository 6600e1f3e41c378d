"""Shapes, axes, masks and dtypes for tests and benchmarks."""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.oracle import Outputs, Primals

EPSILON = 1e-3
MOMENTUM = 0.7

MASKS: dict[str, Callable[[tuple[int, ...], np.random.Generator], np.ndarray]] = {
    "full": lambda shape, rng: rng.random(shape) < 0.6,
    "examples": lambda shape, rng: rng.random((shape[0],) + (1,) * (len(shape) - 1)) < 0.6,
    "lower_rank": lambda shape, rng: rng.random(shape[1:]) < 0.6,
    "integer": lambda shape, rng: rng.integers(-1, 3, (*shape[:-1], 1), dtype=np.int32),
    "nothing": lambda shape, _: np.zeros(shape, bool),
    "single": lambda shape, _: np.arange(math.prod(shape)).reshape(shape) == math.prod(shape) // 2,
    "alternating": lambda shape, _: np.arange(math.prod(shape)).reshape(shape) % 2 == 1,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of a norm with these ``feature_axes``."""

    name: str
    shape: tuple[int, ...]
    feature_axes: int | tuple[int, ...] = -1
    dtype: str = "float32"
    param_dtype: str = "float32"
    mask_name: str | None = None

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Sizes of the feature axes, in the order of the axes of x."""
        axes = self.feature_axes if isinstance(self.feature_axes, tuple) else (self.feature_axes,)
        return tuple(self.shape[i] for i in sorted(axis % len(self.shape) for axis in axes))

    @property
    def result_dtype(self) -> str:
        """The promoted dtype of x and its parameters."""
        if self.dtype == "int32" or self.dtype == self.param_dtype:
            return self.param_dtype
        return "complex64" if "complex64" in (self.dtype, self.param_dtype) else "float32"

    def rng(self) -> np.random.Generator:
        """A random generator specific to this case."""
        return np.random.default_rng(zlib.crc32(self.name.encode()))

    def mask(self) -> Any:
        """The mask, or None."""
        return None if self.mask_name is None else MASKS[self.mask_name](self.shape, self.rng())

    def primals(self) -> Primals:
        """Returns x with a nonzero mean, running statistics, scale and bias."""
        rng = self.rng()
        stats = "complex64" if self.dtype == "complex64" else "float32"
        params = self.param_dtype
        return Primals(
            draw(rng, self.shape, self.dtype, 2.0, 3.0),
            draw(rng, self.feature_shape, stats),
            np.abs(draw(rng, self.feature_shape, "float32")) + np.float32(0.5),
            draw(rng, self.feature_shape, params, 1.0, 0.5),
            draw(rng, self.feature_shape, params),
        )

    def tangents(self) -> Primals:
        """Random tangents with the shapes and dtypes of the primals."""
        rng = np.random.default_rng(2)
        return Primals(*(draw(rng, p.shape, str(p.dtype)) for p in self.primals()))

    def like(self, outputs: Outputs) -> Outputs:
        """Random cotangents with the shapes and dtypes of ``outputs``."""
        rng = np.random.default_rng(1)
        return Outputs(*(draw(rng, o.shape, str(o.dtype)) for o in outputs))


def draw(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: str,
    mean: float = 0.0,
    std: float = 1.0,
) -> Any:
    """Normal random numbers; complex ones also have a normal imaginary part."""
    values = mean + std * rng.standard_normal(shape)
    if dtype == "complex64":
        values = values + 1j * std * rng.standard_normal(shape)
    return np.asarray(values).astype(jnp.dtype(dtype))


SHAPES = (
    Case("vector", (7,)),
    Case("vector_no_feature", (7,), ()),
    Case("rows", (5, 3)),
    Case("rows_channels_first", (3, 5), 0),
    Case("nothing_reduced", (3, 4), (0, 1)),
    Case("one_channel", (9, 1)),
    Case("prime", (101, 13)),
    Case("sequence", (4, 9, 6)),
    Case("images", (6, 5, 7, 3)),
    Case("images_channels_first", (6, 3, 5, 7), 1),
    Case("one_pixel", (33, 1, 1, 4)),
    Case("one_example", (1, 6, 6, 3)),
    Case("one_value", (1, 4)),
    Case("two_features", (2, 3, 4, 5), (1, 3)),
    Case("features_apart", (3, 4, 2, 5), (0, 2)),
    Case("features_negative", (3, 4, 2, 5), (-1, -3)),
    Case("video", (2, 3, 4, 3, 2)),
    Case("video_two_features", (2, 3, 4, 5, 3), (-1, 1)),
    Case("wide_examples", (4, 16, 16, 3)),
    Case("wide_examples_channels_first", (3, 5, 13, 17), 1),
    Case("empty", (0, 3)),
    Case("empty_batch", (0, 12, 12, 2)),
    Case("empty_pixels", (5, 0, 3)),
)
# More than 32k rows, for which compilers choose other reductions.
LARGE = (
    Case("large_rows", (40009, 3)),
    Case("large_rows_channels_first", (3, 40009), 0),
    Case("large_example", (1, 40009, 2)),
    Case("large_images", (64, 28, 28, 5)),
    Case("large_prime", (131, 17, 19, 2)),
)
DTYPES = (
    Case("rows_bfloat16", (64, 3), dtype="bfloat16", param_dtype="bfloat16"),
    Case("images_bfloat16", (6, 12, 11, 3), dtype="bfloat16"),
    Case("rows_float16", (64, 3), dtype="float16", param_dtype="float16"),
    Case("channels_first_float16", (6, 3, 12, 11), 1, dtype="float16"),
    Case("rows_complex64", (17, 3), dtype="complex64"),
    Case("images_complex64", (4, 12, 11, 2), dtype="complex64"),
    Case("rows_int32", (17, 3), dtype="int32"),
    Case("images_int32", (4, 12, 11, 2), dtype="int32"),
)
MASKED = (
    *(Case(f"rows_{m}", (17, 3), mask_name=m) for m in MASKS),
    *(Case(f"images_{m}", (6, 12, 11, 3), mask_name=m) for m in MASKS),
    Case("channels_first_full", (6, 3, 5, 7), 1, mask_name="full"),
    Case("channels_first_examples", (6, 3, 13, 11), 1, mask_name="examples"),
    Case("features_apart_full", (3, 4, 2, 5), (0, 2), mask_name="full"),
    Case("vector_full", (7,), mask_name="full"),
    Case("large_rows_full", (40009, 3), mask_name="full"),
    Case("bfloat16_full", (6, 12, 11, 3), dtype="bfloat16", mask_name="full"),
    Case("float16_integer", (64, 3), dtype="float16", mask_name="integer"),
    Case("complex64_full", (17, 3), dtype="complex64", mask_name="full"),
    Case("int32_examples", (17, 3), dtype="int32", mask_name="examples"),
)
CASES = (*SHAPES, *LARGE, *DTYPES, *MASKED)
