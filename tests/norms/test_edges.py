"""Rows of zeros, constant rows, single elements, empty arrays and full masks give finite results."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw
from tests.family import of


def batch(x: Any, *parameters: Any, **options: Any) -> jax.Array:
    """Batch norm with the first axis as features, so each example has its own statistics."""
    return jn.batch_norm(x, jn.init_running_stats(len(x)), *parameters, feature_axes=0, **options)[
        0
    ]


def tracked(x: Any, *parameters: Any, **options: Any) -> jax.Array:
    """Adds the running statistics to y, so that they must be finite too."""
    y, stats = jn.tracked_instance_norm(
        x, jn.init_running_stats(x.shape[-1]), *parameters, **options
    )
    return y + stats.mean.astype(y.dtype).sum() + stats.var.astype(y.dtype).sum()


# For (N, positions, channels). Norms that subtract a mean, then norms with only a scale.
SUBTRACTING: dict[str, Callable[..., jax.Array]] = {
    "batch": batch,
    "layer": of(jn.layer_norm, reduction_axes=(1, 2)),
    "group": of(jn.group_norm, num_groups=3),
    "instance": jn.instance_norm,
    "standardization": of(jn.weight_standardization, feature_axes=0),
}
DIVIDING: dict[str, Callable[..., jax.Array]] = {
    "rms": of(jn.rms_norm, reduction_axes=(1, 2)),
    "l2": of(jn.l2_normalize, reduction_axes=(1, 2)),
    "weight": of(jn.weight_norm, feature_axes=0),
}
ALL = {**SUBTRACTING, **DIVIDING, "tracked": tracked}
MASKED = [name for name in ALL if name not in ("standardization", "weight")]
EPSILONS = pytest.mark.parametrize("options", [{}, {"epsilon": 0.0}], ids=["default", "zero"])


def parameters(name: str, x: Any) -> list[Any]:
    """A random scale and, if the norm has one, a bias."""
    shape = x.shape[:1] if name in ("batch", "weight", "standardization") else x.shape[-1:]
    one = name in (*DIVIDING, "standardization")
    return [draw(np.random.default_rng(i), shape, "float32", 1.0) for i in range(1 if one else 2)]


def derivatives(f: Callable[..., jax.Array], *at: Any, second: bool = True) -> list[Any]:
    """Value, gradient, and second derivative along random directions."""
    rng = np.random.default_rng(7)
    along = tuple(draw(rng, a.shape, str(a.dtype)) for a in at)

    @jax.jit
    def everything(at: Any, along: Any) -> Any:
        loss = jax.grad(lambda at: (jnp.sin(f(*at).astype(jnp.float32)) ** 2).sum())
        return f(*at), jax.jvp(loss, (at,), (along,)) if second else loss(at)

    return jax.tree.leaves(everything(at, along))


def all_finite(arrays: list[Any]) -> bool:
    """Whether no array has a NaN or an infinity."""
    return all(bool(jnp.isfinite(a).all()) for a in arrays)


def examples() -> np.ndarray:
    """Zeros; a constant; all zero but one; two values; random values."""
    x = np.zeros((5, 3, 6), np.float32)
    x[1] = 3.3
    x[2, 1, 2] = 1.0
    x[3, :, ::2] = -2.0
    x[4] = draw(np.random.default_rng(0), (3, 6), "float32", 1.0, 2.0)
    return x


@pytest.mark.sampled
@EPSILONS
@pytest.mark.parametrize("name", ALL)
def test_zeros_and_constants(name: str, options: Any) -> None:
    """Value, gradient and second derivative are finite, even with an epsilon of 0."""
    x = examples()
    assert all_finite(derivatives(of(ALL[name], **options), x, *parameters(name, x)))


@EPSILONS
@pytest.mark.parametrize("name", {**SUBTRACTING, **DIVIDING})
def test_zeros_stay(name: str, options: Any) -> None:
    """An example of zeros gives the bias, and so does a constant one if the norm subtracts a mean."""
    x = examples()[:2]
    y = jax.jit(of(ALL[name], **options))(x)
    assert not y[0].any()
    if name in SUBTRACTING:
        np.testing.assert_allclose(y[1], 0, atol=1e-3)


@pytest.mark.parametrize("name", {**SUBTRACTING, **DIVIDING})
def test_an_epsilon_that_float32_rounds_to_none(name: str) -> None:
    """A positive epsilon that float32 flushes to 0 gives finite results."""
    y = jax.jit(of(ALL[name], epsilon=1e-42))(examples()[:2])
    assert not y[0].any()
    assert all_finite([y])


@pytest.mark.sampled
@EPSILONS
@pytest.mark.parametrize("name", ALL)
def test_single_element(name: str, options: Any) -> None:
    """A single value gives the bias, or ±1 if the norm divides by a length; derivatives are finite."""
    x = np.full((1, 1, 1), -3.0, np.float32)
    options = {**options, **({"num_groups": 1} if name == "group" else {})}
    f = of(ALL[name], **options)
    found = derivatives(f, x, *parameters(name, x))
    assert all_finite(found)
    if name != "tracked":
        expected = -1 if name in DIVIDING else 0
        np.testing.assert_allclose(jax.jit(f)(x), expected, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("shape", [(0, 3, 6), (2, 0, 6)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_empty(name: str, shape: tuple[int, ...]) -> None:
    """Inputs with no examples or only empty ones keep their shape, and gradients are finite."""
    x = np.zeros(shape, np.float32)
    found = derivatives(ALL[name], x, *parameters(name, x))
    assert found[0].shape == shape
    assert all_finite(found)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MASKED)
def test_counts_of_one_and_of_none(name: str, dtype: str) -> None:
    """Fully masked examples and those with one unmasked value give finite results.

    At a variance of 0 the second derivative exceeds float16.
    """
    x = draw(np.random.default_rng(0), (3, 3, 6), dtype, 1.0, 2.0)
    mask = np.zeros((3, 3, 6), bool)
    mask[1, 1, 1] = mask[2] = True
    if dtype == "float32":
        x[0, 0], x[1, 0, 0] = np.nan, np.inf
    at = [np.asarray(p, dtype) for p in parameters(name, x)]
    f = of(ALL[name], mask=jnp.asarray(mask))
    assert all_finite(derivatives(f, x, *at, second=dtype != "float16"))


@pytest.mark.parametrize("name", ["batch", "layer", "group", "instance", "rms", "l2"])
def test_where_nothing_counts_values_stay(name: str) -> None:
    """A fully masked example is normalized with mean 0 and a variance, or length, of 1."""
    x = draw(np.random.default_rng(0), (2, 3, 6), "float32", 1.0, 2.0)
    mask = jnp.asarray([False, True])[:, None, None]
    y = jax.jit(of(ALL[name], mask=mask))(x)
    np.testing.assert_allclose(y[0], x[0], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [*SUBTRACTING, *DIVIDING])
def test_what_is_not_finite_is_not_hidden(name: str, value: float) -> None:
    """An unmasked NaN or infinity shows in its own example and affects no other."""
    x = examples()
    x[4, 1, 1] = value
    y = jax.jit(ALL[name])(x)
    assert all_finite([y[:4]])
    assert not jnp.isfinite(y[4, 1, 1])
    assert not np.any(np.asarray(y[4]) == x[4])


@pytest.mark.parametrize("name", {**SUBTRACTING, **DIVIDING})
def test_an_overflow_is_not_hidden(name: str) -> None:
    """If its squares overflow, an example does not come out unnormalized."""
    x = examples()[4:] * np.float32(1e20)
    y = np.asarray(jax.jit(ALL[name])(x))
    assert not np.any(np.isfinite(y) & (np.abs(y) > 1e3))
