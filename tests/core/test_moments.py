"""`moments` against the oracle: any axes, any mask, any dtype, far from zero."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests import oracle
from tests.cases import CASES, Case, draw
from tests.oracle import assert_close

SMALL = [case for case in CASES if not case.name.startswith("large")][::2]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_moments(case: Case) -> None:
    """Mean, biased variance and count, in float32, with the reduced axes kept."""
    x, mask = case.primals().x, case.mask()
    axes = oracle.complement(case.feature_axes, x.ndim)
    got = jax.jit(lambda x, m: jn.moments(x, axes, mask=m))(x, mask)
    kind = jnp.complex64 if case.dtype == "complex64" else jnp.float32
    assert (got.mean.dtype, got.var.dtype, got.count.dtype) == (kind, jnp.float32, jnp.float32)
    want = oracle.moments(x, axes, mask)
    assert_close(got.mean, want.mean)
    assert_close(got.var, want.var)
    np.testing.assert_array_equal(jnp.broadcast_to(got.count, want.count.shape), want.count)


@pytest.mark.parametrize("axes", [-1, (-1, 0), (2, 1), (0, 1, 2, 3), (), 2])
def test_any_axes(axes: Any) -> None:
    """Axes in any order, negative, none and all."""
    x = draw(np.random.default_rng(0), (3, 4, 5, 6), "float32", 1.0)
    got, want = jax.jit(lambda x: jn.moments(x, axes))(x), oracle.moments(x, axes)
    assert_close(got.mean, want.mean)
    assert_close(got.var, want.var)


def test_gradient_of_moments() -> None:
    """Gradients are 1/n for the mean and 2 (x - mean)/n for the variance; masked elements get 0, even NaN."""
    case = Case("moments", (7, 3), mask_name="full")
    x, mask = case.primals().x, case.mask()
    x = np.where(mask, x, np.nan).astype(np.float32)
    m = oracle.moments(x, 0, mask)
    a, b = draw(case.rng(), (2, 1, 3), "float32")

    def f(x: Any) -> Any:
        got = jn.moments(x, 0, mask=jnp.asarray(mask))
        return (a * got.mean + b * got.var).sum()

    want = np.where(mask, (a + 2 * b * (np.where(mask, x, 0) - m.mean)) / m.count, 0)
    assert_close(jax.jit(jax.grad(f))(x), want)
    assert_close(jax.jit(jax.jacfwd(f))(x), want)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_curvature_of_a_constant_input(value: float) -> None:
    """Where the variance is 0, its second derivative is 2 (1 - 1/n) / n on the diagonal.

    Clipping a tiny negative variance, left by rounding, to 0 does not remove any derivative.
    """
    x = jnp.full((7,), value, jnp.float32)
    got = jax.jit(jax.hessian(lambda x: jn.moments(x, 0).var[0]))(x)
    assert_close(got, 2 * (np.eye(7) - 1 / 7) / 7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_not_summed_as_such(dtype: str) -> None:
    """In bfloat16 5000 ones sum to 256, in float16 to 2048; their mean is still 1."""
    x = jnp.ones((5000, 2), dtype)
    for mask in (None, jnp.ones((5000, 1), bool)):
        m = jn.moments(x, 0, mask=mask)
        np.testing.assert_array_equal(m.mean, [[1, 1]])
        np.testing.assert_array_equal(m.var, [[0, 0]])
        np.testing.assert_array_equal(jnp.broadcast_to(m.count, (1, 2)), [[5000, 5000]])


def test_counts_beyond_the_integers_of_float32() -> None:
    """A mask with 2^25 elements is counted correctly; adding one at a time, float32 stops at 2^24."""
    size = 1 << 25
    count = jax.jit(lambda m: jn.moments(m, 0, mask=m).count)(jnp.ones((size,), jnp.int8))
    np.testing.assert_allclose(count, [size])
