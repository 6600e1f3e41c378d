"""What is saved for the backward pass, and how often it takes sums over the activation."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals

import jaxnorm as jn
from tests.programs import equations
from tests.zoo import ZOO, primals

SHAPE = (16, 12, 12, 8)


def train(x: Any, scale: Any, bias: Any, mask: Any = None) -> Any:
    """`batch_norm` as in a layer."""
    return jn.batch_norm(x, jn.init_running_stats(x.shape[-1]), scale, bias, mask=mask)


def plain(x: Any, scale: Any, bias: Any) -> Any:
    """A norm written in one line, with everything that it saves."""
    wide = x.astype(jnp.float32)
    unit = (wide - wide.mean((0, 1, 2), keepdims=True)) * jax.lax.rsqrt(
        wide.var((0, 1, 2), keepdims=True) + 1e-5
    )
    gain, offset = (p.astype(jnp.float32).reshape(1, 1, 1, -1) for p in (scale, bias))
    return (unit * gain + offset).astype(x.dtype)


def arguments(dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x, scale and bias."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.dtype(dtype))
    return x, jnp.ones(SHAPE[-1], x.dtype), jnp.zeros(SHAPE[-1], x.dtype)


def large_residuals(f: Any, *args: Any) -> list[tuple[Any, Any]]:
    """Shape and dtype of all residuals with more than 5 % of the elements of x."""
    avals: list[Any] = [aval for aval, _ in saved_residuals(f, *args)]
    assert avals, "nothing saved: the search found nothing"
    return [(a.shape, a.dtype) for a in avals if math.prod(a.shape) > 0.05 * math.prod(SHAPE)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_x_is_saved(dtype: str, masked: bool) -> None:
    """The backward pass needs a single array of the size of x: x itself, in its own dtype."""
    x, scale, bias = arguments(dtype)
    mask = jnp.arange(SHAPE[0]).reshape(-1, 1, 1, 1) < 9 if masked else None
    found = large_residuals(lambda *a: train(*a, mask=mask), x, scale, bias)
    assert found == [(SHAPE, jnp.dtype(dtype))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_x_is_saved_in_evaluation(dtype: str) -> None:
    """The same holds for fine-tuning with frozen statistics."""
    x, scale, bias = arguments(dtype)
    stats = jn.init_running_stats(SHAPE[-1])
    found = large_residuals(lambda *a: jn.batch_norm_inference(a[0], stats, *a[1:]), x, scale, bias)
    assert found == [(SHAPE, jnp.dtype(dtype))]


# The function, the shape of x (with the elements of (16, 12, 12, 8)), and the number of statistics and of
# parameters.
ROWS = (16, 1152)
OTHERS: dict[str, tuple[Any, tuple[int, ...], int, int]] = {
    "layer": (jn.layer_norm, ROWS, 16, 2),
    "layer, all but the batch": (partial(jn.layer_norm, reduction_axes=(1, 2, 3)), SHAPE, 16, 2),
    "rms": (jn.rms_norm, ROWS, 16, 1),
    "l2": (jn.l2_normalize, ROWS, 16, 1),
    "group": (partial(jn.group_norm, num_groups=2), SHAPE, 16 * 8, 2),
    "group, channels first": (
        partial(jn.group_norm, num_groups=4, feature_axes=1),
        (16, 8, 12, 12),
        16 * 8,
        2,
    ),
    "instance": (jn.instance_norm, SHAPE, 16 * 8, 2),
    "instance, tracked": (
        lambda x, *affine, **mask: jn.tracked_instance_norm(
            x, jn.init_running_stats(8), *affine, **mask
        ),
        SHAPE,
        16 * 8,
        2,
    ),
    "weight": (jn.weight_norm, SHAPE, 8, 1),
    "standardization": (jn.weight_standardization, SHAPE, 8, 1),
    "local response": (partial(jn.local_response_norm, size=5), SHAPE, 0, 0),
}
MASKLESS = ("weight", "standardization", "local response")


@pytest.mark.parametrize(
    ("name", "masked"),
    [(name, m) for name in OTHERS for m in (False, True) if not (m and name in MASKLESS)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_x_is_saved_by_the_others(name: str, masked: bool, dtype: str) -> None:
    """The only large residual is x in its own dtype; each statistic saves at most three float32 numbers.

    With running statistics it is at most six.
    """
    f, shape, statistics, count = OTHERS[name]
    channel = 1 if "channels first" in name else -1
    x = jnp.zeros(shape, dtype)
    parameters = [jnp.zeros(shape[channel], dtype)] * count
    mask = jnp.arange(16).reshape(-1, *[1] * (len(shape) - 1)) < 9
    f = partial(f, mask=mask) if masked else f
    avals: list[Any] = [aval for aval, _ in saved_residuals(f, x, *parameters)]
    assert [(a.shape, a.dtype) for a in avals if a.size == x.size] == [(shape, x.dtype)]
    rest = sum(a.size * a.dtype.itemsize for a in avals if a.size != x.size)
    of_mask = 2 * 4 * 16 if masked else 0  # as booleans, plus a count for each example
    numbers = 6 if "tracked" in name else 3
    assert rest <= numbers * 4 * statistics + of_mask + 2 * sum(p.nbytes for p in parameters) + 64


def passes_over(jaxpr: Any, size: int) -> int:
    """How often the program takes sums over an array of ``size`` elements."""
    sums = (e.params for e in equations(jaxpr) if e.primitive.name == "norm_map_sum")
    return sum(bool(p["axes"]) and math.prod(p["shape"]) == size for p in sums)


@pytest.mark.parametrize("name", OTHERS)
def test_backward_of_the_others_sums_once(name: str) -> None:
    """The sums of the forward pass are saved: the backward pass sums only what it needs of dy."""
    f, shape, _, count = OTHERS[name]
    channel = 1 if "channels first" in name else -1
    args = [jnp.zeros(shape), *[jnp.zeros(shape[channel])] * count]
    dy = jax.eval_shape(f, *args)
    both = jax.make_jaxpr(lambda dy, *args: jax.vjp(f, *args)[1](dy))(dy, *args)
    forward = jax.make_jaxpr(f)(*args)
    size = math.prod(shape)
    collected = passes_over(both, size) - passes_over(forward, size)
    # a second time for parameters that lie along all axes except those of the statistics
    assert collected == {"local response": 0}.get(name, 2 if shape == ROWS else 1)


@pytest.mark.parametrize("masked", [False, True])
def test_backward_sums_once(masked: bool) -> None:
    """The sums of the forward pass are saved: the backward pass takes Σdy and Σdy(x - μ), in one pass."""
    args = arguments("float32")
    mask = jnp.arange(SHAPE[0]).reshape(-1, 1, 1, 1) < 9 if masked else None
    y, pull, _ = jax.vjp(lambda *a: train(*a, mask=mask), *args, has_aux=True)
    assert passes_over(jax.make_jaxpr(pull)(y), math.prod(SHAPE)) == 1


def test_the_search_for_residuals_can_fail() -> None:
    """The one-line norm keeps float32 copies of a bfloat16 x, and the search finds them."""
    found = large_residuals(plain, *arguments("bfloat16"))
    assert (SHAPE, jnp.dtype("float32")) in found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
# Except those with arguments that fit no other shape.
@pytest.mark.parametrize("name", sorted(set(ZOO) - {"modulate", "add_layer_norm", "add_rms_norm"}))
def test_only_x_is_saved_by_any_norm(name: str, dtype: str) -> None:
    """Other norms also save no float32 copy and nothing that can be recomputed."""
    shape = (3, 20, 30, 4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
    parameters = [jnp.asarray(p) for p in primals(name)[1:]]
    kept: list[Any] = [aval for aval, _ in saved_residuals(ZOO[name].ours, x, *parameters)]
    large = [(a.shape, a.dtype) for a in kept if math.prod(a.shape) > x.size / 2]
    assert large == ([(shape, x.dtype)] if name != "qk_norm, key" else [])
