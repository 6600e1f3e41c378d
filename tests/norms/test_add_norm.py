"""The norm of a sum: the bits of an addition and a norm, and one array saved for the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

import jaxnorm as jn
from tests.cases import draw
from tests.norms.test_zoo import gradient
from tests.oracle import wide

NORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int]] = {
    "rms": (jn.add_rms_norm, jn.rms_norm, 1),
    "rms, cast": (
        partial(jn.add_rms_norm, scale_after_cast=True),
        partial(jn.rms_norm, scale_after_cast=True),
        1,
    ),
    "layer": (jn.add_layer_norm, jn.layer_norm, 2),
}
every_norm = pytest.mark.parametrize("name", NORMS)


def arguments(name: str, *dtypes: str, shape: tuple[int, ...] = (40, 64)) -> list[Any]:
    """Returns x, residual and the parameters, which have the dtype of the residual."""
    rng = np.random.default_rng(4)
    return [
        *(jnp.asarray(draw(rng, shape, dtype, 0.5, 1.5)) for dtype in dtypes),
        *(jnp.asarray(draw(rng, shape[-1:], dtypes[1], 1.0)) for _ in range(NORMS[name][2])),
    ]


@every_norm
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("bfloat16", "float32"),
        ("complex64", "float32"),
    ],
    ids=str,
)
def test_bits(name: str, dtypes: tuple[str, str]) -> None:
    """In one program, all bits are those of an addition and a norm in separate programs."""
    ours, norm, _ = NORMS[name]
    x, residual, *parameters = arguments(name, *dtypes)
    with jax.numpy_dtype_promotion("standard"):
        total = x + residual
    got = jax.jit(ours)(x, residual, *parameters)
    for a, b in zip(got, (jax.jit(norm)(total, *parameters), total), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@every_norm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_the_sum_is_saved(name: str, dtype: str) -> None:
    """The backward pass reads one array of the size of x, which is the result and not x or the residual."""
    x, residual, *parameters = arguments(name, dtype, dtype)
    saved: list[Any] = saved_residuals(NORMS[name][0], x, residual, *parameters)
    large = [(aval, source) for aval, source in saved if aval.size == x.size]
    assert [aval.dtype for aval, _ in large] == [jnp.dtype(dtype)]
    assert "argument" not in large[0][1]


@every_norm
def test_gradients_of_both_results(name: str) -> None:
    """The gradients of a function of y and the sum match float64; those of x and residual are equal."""
    ours, norm, _ = NORMS[name]
    args = arguments(name, "float32", "float32", shape=(3, 8))
    weights = draw(np.random.default_rng(5), (3, 8), "float32")

    def mixed(*args: Any) -> Any:
        y, total = ours(*args)
        return y + weights * total

    def formula(x: Any, residual: Any, scale: Any, bias: Any = 0.0) -> Any:
        total = x + residual
        centered = total - (total.mean(-1, keepdims=True) if norm is jn.layer_norm else 0)
        unit = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
        return unit * scale + bias + weights * total

    dy = jnp.asarray(np.random.default_rng(11).normal(size=(3, 8)), jnp.float32)
    got = jax.jit(lambda *args: jax.vjp(mixed, *args)[1](dy))(*args)
    for i, ours_of_one in enumerate(got):
        want = gradient(formula, [wide(a) for a in args], i)
        np.testing.assert_allclose(ours_of_one, want, atol=2e-5 * np.abs(want).max())
    np.testing.assert_array_equal(got[0], got[1])


@every_norm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_wide_is_stored(name: str, dtype: str) -> None:
    """The program needs no memory beside the two results: not for a sum in float32, either."""
    args = arguments(name, dtype, dtype, shape=(512, 1024))
    memory: Any = jax.jit(NORMS[name][0]).lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < args[0].nbytes / 2
