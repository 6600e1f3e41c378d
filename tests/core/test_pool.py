"""`pool` and `combine`: the moments of parts give the moments of the whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests import oracle
from tests.cases import draw
from tests.oracle import assert_close


def parts(*sizes: int, dtype: str = "float32") -> list[Any]:
    """Arrays of the given lengths, each with a different mean."""
    rng = np.random.default_rng(0)
    return [draw(rng, (n, 3), dtype, 5.0 * i, i + 1.0) for i, n in enumerate(sizes)]


def check(got: jn.Moments, want: oracle.Moments) -> None:
    """Compares mean, variance and count."""
    for g, w in zip(got, want, strict=True):
        assert_close(jnp.broadcast_to(g, w.shape), w)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_combine_is_the_concatenation(dtype: str) -> None:
    """Two parts of different sizes combine in either order."""
    a, b = parts(3, 8, dtype=dtype)
    ma, mb = (jn.moments(x, 0) for x in (a, b))
    want = oracle.moments(np.concatenate([a, b]), 0)
    check(jn.combine(ma, mb), want)
    check(jn.combine(mb, ma), want)


def test_combine_is_associative() -> None:
    """(a b) c = a (b c) = the moments of all."""
    xs = parts(2, 7, 1)
    a, b, c = (jn.moments(x, 0) for x in xs)
    want = oracle.moments(np.concatenate(xs), 0)
    check(jn.combine(jn.combine(a, b), c), want)
    check(jn.combine(a, jn.combine(b, c)), want)


def test_an_empty_side_changes_nothing() -> None:
    """Combining with empty moments on either side changes nothing; two empty sides stay empty."""
    (x,) = parts(6)
    m = jn.moments(x, 0)
    empty = jn.moments(x, 0, mask=jnp.zeros((6, 1), bool))
    want = oracle.moments(x, 0)
    check(jn.combine(m, empty), want)
    check(jn.combine(empty, m), want)
    np.testing.assert_array_equal(jn.combine(empty, empty).count, np.zeros((1, 3)))
    assert all(np.isfinite(leaf).all() for leaf in jn.combine(empty, empty))


def test_an_empty_side_of_someone_elses_making() -> None:
    """Moments from other code may be NaN where the count is 0: they are not read, forward or backward."""
    nan = jnp.full((1, 3), jnp.nan)
    (x,) = parts(6)
    other = jn.Moments(nan, nan, jnp.zeros((1, 3)))
    check(jn.combine(jn.moments(x, 0), other), oracle.moments(x, 0))
    g = jax.grad(lambda x: jn.combine(jn.moments(x, 0), other).var.sum())(jnp.asarray(x))
    assert np.isfinite(g).all()


@pytest.mark.parametrize("axes", [0, 1, (0, 2), (-1, 0), (0, 1, 2, 3), ()])
def test_pool_along_axes_of_the_statistics(axes: Any) -> None:
    """Moments along one axis, pooled along others, are the moments along all of them."""
    rng = np.random.default_rng(0)
    x = draw(rng, (3, 4, 5, 2), "float32", 3.0)
    mask = rng.random(x.shape) < 0.7
    m = jax.jit(lambda x: jn.moments(x, 2, mask=jnp.asarray(mask)))(x)
    taken = axes if isinstance(axes, tuple) else (axes,)
    check(
        jax.jit(lambda m: jn.pool(m, axes))(m),
        oracle.moments(x, (2, *(i for i in taken if i != 2)), mask),
    )


def test_pool_where_the_count_is_shared() -> None:
    """A count of size 1 applies to every feature."""
    x = draw(np.random.default_rng(0), (6, 5, 3), "float32", 3.0)
    m = jn.moments(x, 1)
    shared = m._replace(count=jnp.full((1, 1, 1), 5.0))
    pooled = jn.pool(shared, 0)
    check(pooled, oracle.moments(x, (0, 1)))
    assert {a.shape for a in pooled} == {(1, 1, 3)}


def test_variances_are_not_averaged() -> None:
    """Replicas with variance 0.96 each have variance 5.97 together, since their means differ."""
    replicas = np.random.default_rng(3).standard_normal((4, 32)) + 2.0 * np.arange(4)[:, None]
    m = jn.moments(jnp.asarray(replicas, jnp.float32), 1)
    truth = replicas.var()
    assert abs(float(m.var.mean()) - truth) > 4  # the error of averaging variances
    np.testing.assert_allclose(jn.pool(m, 0).var, [[truth]], rtol=1e-5)
    known = jn.Moments(jnp.array([0.0, 2.0, 4.0, 6.0]), jnp.full(4, 0.97), jnp.full(4, 32.0))
    np.testing.assert_allclose(jn.pool(known, 0).var, [5.97], rtol=1e-6)


def test_far_from_zero() -> None:
    """Pooling at mean/std = 1e4 keeps the variance to 1e-3."""
    x = draw(np.random.default_rng(0), (50, 20, 3), "float32", 1e4)
    m = jn.pool(jn.moments(x, 1), 0)
    np.testing.assert_allclose(m.var[0, 0], x.astype(np.float64).var((0, 1)), rtol=1e-3)


def test_derivatives_of_combine() -> None:
    """The JVP and VJP of combine match those of the moments of the concatenation."""
    a, b = (jnp.asarray(x) for x in parts(4, 7))
    w = draw(np.random.default_rng(1), (2, 1, 3), "float32")

    def combined(a: Any, b: Any) -> Any:
        m = jn.combine(jn.moments(a, 0), jn.moments(b, 0))
        return (w[0] * m.mean + w[1] * m.var).sum()

    n, m = 11, oracle.moments(np.concatenate([a, b]), 0)
    for jac in (jax.grad, jax.jacfwd):
        for got, x in zip(jax.jit(jac(combined, (0, 1)))(a, b), (a, b), strict=True):
            assert_close(got, (w[0] + 2 * w[1] * (np.float64(x) - m.mean)) / n)
    da, db = a + 1, 2 * b
    got = jax.jit(lambda: jax.jvp(combined, (a, b), (da, db))[1])()
    gradients = jax.jit(jax.grad(combined, (0, 1)))(a, b)
    want = sum((np.float64(g) * d).sum() for g, d in zip(gradients, (da, db), strict=True))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_fold_with_scan_and_vmap() -> None:
    """Combine works as the step of a scan over batches, vmapped over models."""
    x = draw(np.random.default_rng(0), (2, 9, 4, 3), "float32", 4.0)

    def fold(x: Any) -> jn.Moments:
        first = jn.moments(x[0], 0)  # its single count applies to all features
        first = first._replace(count=jnp.broadcast_to(first.count, first.mean.shape))
        return jax.lax.scan(lambda m, b: (jn.combine(m, jn.moments(b, 0)), None), first, x[1:])[0]

    got = jax.jit(jax.vmap(fold))(jnp.asarray(x))
    for i in range(2):
        want = oracle.moments(x[i], (0, 1))
        assert_close(got.mean[i][None], want.mean)
        assert_close(got.var[i][None], want.var)


def test_combine_is_the_carry_of_a_scan() -> None:
    """`combine` keeps the type of moments, so scan and associative_scan accept it."""
    xs = jax.random.normal(jax.random.key(0), (5, 8, 3))
    whole = jn.moments(xs.reshape(40, 3), 0)
    first = jn.moments(xs[0], 0)
    scanned, _ = jax.lax.scan(lambda m, x: (jn.combine(m, jn.moments(x, 0)), None), first, xs[1:])
    each = jax.vmap(lambda x: jn.moments(x, 0))(xs)
    associated = jax.lax.associative_scan(jax.vmap(jn.combine), each)
    for got in (scanned, jax.tree.map(lambda leaf: leaf[-1], associated)):
        for a, b in zip(got, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-6, 0.25, 1.0, 100.0])
def test_counts_may_be_weights_of_any_size(unit: float) -> None:
    """The unit of the counts does not matter: not to the mean and variance, and not to their derivatives."""
    mean, var, n = (
        jnp.array(a) for a in ([[3.0], [7.0], [0.0]], [[1.0], [2.0], [9.0]], [[1.0], [3.0], [0.0]])
    )

    def both(mean: jax.Array, n: jax.Array) -> Any:
        m = jn.Moments(mean, var, unit * n)
        a, b, c = (jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], m) for i in range(3))
        return [
            (p.mean, p.var, p.count / unit)
            for p in (jn.pool(m, 0), jn.combine(a, jn.combine(b, c)))
        ]

    for found in both(mean, n):
        for value, want in zip(found, (6.0, 4.75, 4.0), strict=True):
            assert_close(value, [[want]])
    by_mean, by_n = jax.jacobian(lambda *given: both(*given)[0][0].sum(), (0, 1))(mean, n)
    assert_close(by_mean, [[0.25], [0.75], [0.0]])
    assert_close(by_n[:2], [[-0.75], [0.25]])


def test_moments_in_numpy() -> None:
    """NumPy moments pool and combine as in jax, also if they are in float64."""
    m = jn.Moments(*(np.array(a) for a in ([3.0, 7.0], [1.0, 2.0], [1.0, 3.0])))  # pyright: ignore[reportArgumentType]
    for got in (jn.pool(m, 0), jax.tree.map(lambda leaf: leaf[:1], jn.combine(m, m))):
        assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in got)
    assert_close(jn.pool(m, 0).var, [4.75])
