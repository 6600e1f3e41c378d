"""RMS norm with Hugging Face's order: cast to the dtype of the input, then multiply by the scale."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw

HALF = ["bfloat16", "float16"]


def arguments(dtype: str, scale_dtype: str) -> Any:
    """Returns x and scale."""
    rng = np.random.default_rng(2)
    return draw(rng, (64, 96), dtype, 0.5, 1.5), draw(rng, (96,), scale_dtype, 1.0)


def oracle(x: Any, scale: Any) -> Any:
    """LlamaRMSNorm, with each step in the dtype it has there."""
    wide = np.float64(x)
    unit = (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)
    return scale * unit


@pytest.mark.parametrize(
    ("dtype", "scale_dtype"), [*zip(HALF, HALF, strict=True), *((d, "float32") for d in HALF)]
)
def test_values(dtype: str, scale_dtype: str) -> None:
    """Both roundings are those of the model; without the option, there is one."""
    x, scale = arguments(dtype, scale_dtype)
    want = np.float32(oracle(x, scale))
    got, usual = (
        np.float32(
            jax.jit(lambda x, s, after=after: jn.rms_norm(x, s, scale_after_cast=after))(x, scale)
        )
        for after in (True, False)
    )
    # A value in the middle of two of x's dtype may be rounded the other way in float32.
    assert np.mean(got != want) < 1e-3 < 0.05 < np.mean(usual != want)
    np.testing.assert_allclose(got, want, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", HALF)
def test_is_a_norm_times_the_scale(dtype: str) -> None:
    """In one program, all bits are those of separate programs, where XLA cannot leave out a rounding."""
    x, scale = map(jnp.asarray, arguments(dtype, dtype))
    got = jax.jit(lambda x, scale: jn.rms_norm(x, scale, scale_after_cast=True))(x, scale)
    np.testing.assert_array_equal(got, scale[None] * jn.rms_norm(x))


def test_gradients() -> None:
    """Gradients are those of the norm without the option, up to rounding."""
    x, scale = arguments("bfloat16", "bfloat16")
    dy = draw(np.random.default_rng(3), x.shape, "float32")

    @jax.jit
    def gradients(x: Any, scale: Any) -> Any:
        def loss(after: bool) -> Any:
            return lambda *args: (
                jn.rms_norm(*args, scale_after_cast=after).astype(jnp.float32) * dy
            ).sum()

        return [jax.grad(loss(after), (0, 1))(x, scale) for after in (True, False)]

    for got, want in zip(*gradients(x, scale), strict=True):
        got, want = np.float32(got), np.float32(want)
        np.testing.assert_allclose(got, want, atol=2e-2 * np.abs(want).max())


def test_wide_values_are_not_rounded() -> None:
    """In float32 and for complex values, nothing changes."""
    wide, scale = arguments("float32", "float32")
    for x in map(jnp.asarray, (wide, wide + 1j * wide[::-1], np.int32(8 * wide))):
        want, got = (jn.rms_norm(x, scale, scale_after_cast=after) for after in (False, True))
        np.testing.assert_array_equal(got, want)
