"""Rows of zeros, constant rows, single elements, empty arrays, counts of none: answers stay finite."""

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
    """The first axis as features: each example has statistics of its own, as in the other norms."""
    return jn.batch_norm(x, jn.init_running_stats(len(x)), *parameters, feature_axes=0, **options)[
        0
    ]


def tracked(x: Any, *parameters: Any, **options: Any) -> jax.Array:
    """Running statistics too: a function of x that must be as finite as y."""
    y, stats = jn.tracked_instance_norm(
        x, jn.init_running_stats(x.shape[-1]), *parameters, **options
    )
    return y + stats.mean.astype(y.dtype).sum() + stats.var.astype(y.dtype).sum()


# Of (N, positions, channels): those that subtract a mean; with a scale alone; with a kernel's scale.
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
# Two faults of the package, to be taken off with them.
EPSILONS = pytest.mark.parametrize("options", [{}, {"epsilon": 0.0}], ids=["default", "zero"])


def parameters(name: str, x: Any) -> list[Any]:
    """Random scale and, where there is one, bias."""
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
    """Whether none of them has a NaN or an infinity."""
    return all(bool(jnp.isfinite(a).all()) for a in arrays)


def examples() -> np.ndarray:
    """Zeros; a constant; all but one zero; two values; anything."""
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
    """Finite in value, gradient and second derivative, also with no epsilon to help."""
    x = examples()
    assert all_finite(derivatives(of(ALL[name], **options), x, *parameters(name, x)))


@EPSILONS
@pytest.mark.parametrize("name", {**SUBTRACTING, **DIVIDING})
def test_zeros_stay(name: str, options: Any) -> None:
    """An example of zeros comes out as bias alone, a constant one as well where a mean is subtracted."""
    x = examples()[:2]
    y = jax.jit(of(ALL[name], **options))(x)
    assert not y[0].any()
    if name in SUBTRACTING:
        np.testing.assert_allclose(y[1], 0, atol=1e-3)


@pytest.mark.parametrize("name", {**SUBTRACTING, **DIVIDING})
def test_an_epsilon_that_float32_rounds_to_none(name: str) -> None:
    """Positive, but as good as 0."""
    y = jax.jit(of(ALL[name], epsilon=1e-42))(examples()[:2])
    assert not y[0].any()
    assert all_finite([y])


@pytest.mark.sampled
@EPSILONS
@pytest.mark.parametrize("name", ALL)
def test_single_element(name: str, options: Any) -> None:
    """One value has no variance, and comes out as bias; its length is its magnitude."""
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
    """No examples, or none but empty ones: an answer of that shape, parameters with a finite gradient."""
    x = np.zeros(shape, np.float32)
    found = derivatives(ALL[name], x, *parameters(name, x))
    assert found[0].shape == shape
    assert all_finite(found)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MASKED)
def test_counts_of_one_and_of_none(name: str, dtype: str) -> None:
    """An example with everything masked, and one with a single value that is not.

    At a variance of 0 the second derivative is beyond float16.
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
    """An example with everything masked is normalized with mean 0 and variance, or length, 1."""
    x = draw(np.random.default_rng(0), (2, 3, 6), "float32", 1.0, 2.0)
    mask = jnp.asarray([False, True])[:, None, None]
    y = jax.jit(of(ALL[name], mask=mask))(x)
    np.testing.assert_allclose(y[0], x[0], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [*SUBTRACTING, *DIVIDING])
def test_what_is_not_finite_is_not_hidden(name: str, value: float) -> None:
    """A NaN or an infinity that counts spoils its own statistic, visibly, and that of no other example."""
    x = examples()
    x[4, 1, 1] = value
    y = jax.jit(ALL[name])(x)
    assert all_finite([y[:4]])
    assert not jnp.isfinite(y[4, 1, 1])
    assert not np.any(np.asarray(y[4]) == x[4])


@pytest.mark.parametrize("name", {**SUBTRACTING, **DIVIDING})
def test_an_overflow_is_not_hidden(name: str) -> None:
    """Where the squares overflow, an example does not come out as large as it went in."""
    x = examples()[4:] * np.float32(1e20)
    y = np.asarray(jax.jit(ALL[name])(x))
    assert not np.any(np.isfinite(y) & (np.abs(y) > 1e3))
