"""What is kept and written: residuals of the backward pass, temporaries, bytes moved."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

import jaxnorm as jn

SHAPE = (16, 12, 12, 8)


def train(x: Any, scale: Any, bias: Any, mask: Any = None) -> Any:
    """`batch_norm` of a layer."""
    return jn.batch_norm(x, jn.init_running_stats(x.shape[-1]), scale, bias, mask=mask)


def plain(x: Any, scale: Any, bias: Any) -> Any:
    """What a norm written in one line keeps."""
    wide = x.astype(jnp.float32)
    unit = (wide - wide.mean((0, 1, 2), keepdims=True)) * jax.lax.rsqrt(
        wide.var((0, 1, 2), keepdims=True) + 1e-5
    )
    gain, offset = (p.astype(jnp.float32).reshape(1, 1, 1, -1) for p in (scale, bias))
    return (unit * gain + offset).astype(x.dtype)


def arguments(dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, scale and bias."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.dtype(dtype))
    return x, jnp.ones(SHAPE[-1], x.dtype), jnp.zeros(SHAPE[-1], x.dtype)


def large_residuals(f: Any, *args: Any) -> list[tuple[Any, Any]]:
    """Shape and dtype of all that is saved with more than 5 % of the elements of x."""
    avals: list[Any] = [aval for aval, _ in saved_residuals(f, *args)]
    assert avals, "nothing saved: the search found nothing"
    return [(a.shape, a.dtype) for a in avals if math.prod(a.shape) > 0.05 * math.prod(SHAPE)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_x_is_saved(dtype: str, masked: bool) -> None:
    """For backward one array of the size of x is kept, x itself in its own dtype."""
    x, scale, bias = arguments(dtype)
    mask = jnp.arange(SHAPE[0]).reshape(-1, 1, 1, 1) < 9 if masked else None
    found = large_residuals(lambda *a: train(*a, mask=mask), x, scale, bias)
    assert found == [(SHAPE, jnp.dtype(dtype))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_x_is_saved_in_evaluation(dtype: str) -> None:
    """The same for fine-tuning with frozen statistics."""
    x, scale, bias = arguments(dtype)
    stats = jn.init_running_stats(SHAPE[-1])
    found = large_residuals(lambda *a: jn.batch_norm_inference(a[0], stats, *a[1:]), x, scale, bias)
    assert found == [(SHAPE, jnp.dtype(dtype))]


@pytest.mark.parametrize("masked", [False, True])
def test_backward_sums_once(masked: bool) -> None:
    """The sums of the forward pass are kept: backward takes Σdy and Σdy(x - μ), in one pass."""
    args = arguments("float32")
    mask = jnp.arange(SHAPE[0]).reshape(-1, 1, 1, 1) < 9 if masked else None
    y, pull, _ = jax.vjp(lambda *a: train(*a, mask=mask), *args, has_aux=True)
    assert str(jax.make_jaxpr(pull)(y)).count("norm_collect[") == 1


def test_the_search_for_residuals_can_fail() -> None:
    """The one-line norm keeps float32 copies of a bfloat16 x, and is caught."""
    found = large_residuals(plain, *arguments("bfloat16"))
    assert (SHAPE, jnp.dtype("float32")) in found


@pytest.mark.parametrize(("dtype", "passes"), [("float32", 12), ("bfloat16", 16)])
def test_temporaries_and_bytes(dtype: str, passes: int) -> None:
    """Forward and backward on a CPU: at most half of x in temporaries, few passes over memory.

    Eight passes (in units of x) are the floor in float32: two reads and a write forward, two of x, two
    of dy and a write backward. bfloat16 may add small float32 blocks.
    """
    shape = (64, 28, 28, 48)
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    p = jax.ShapeDtypeStruct(shape[-1:], jnp.dtype(dtype))

    def step(x: Any, scale: Any, bias: Any, dy: Any) -> Any:
        y, pull, stats = jax.vjp(train, x, scale, bias, has_aux=True)
        return y, stats, pull(dy)

    compiled = jax.jit(step).lower(x, p, p, x).compile()
    nbytes = math.prod(shape) * jnp.dtype(dtype).itemsize
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    assert memory is not None and cost is not None
    assert memory.temp_size_in_bytes <= 0.5 * nbytes
    assert 7 * nbytes <= cost["bytes accessed"] <= passes * nbytes
