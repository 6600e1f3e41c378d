"""`init_running_stats` and `update_running_stats` on their own."""

from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw
from tests.oracle import assert_close


def batches(steps: int = 5) -> np.ndarray:
    """Batches with different means."""
    rng = np.random.default_rng(0)
    return draw(rng, (steps, 8, 3), "float32") + np.arange(steps, dtype=np.float32)[:, None, None]


@pytest.mark.parametrize("shape", [3, (3,), (2, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_before_any_batch(shape: int | tuple[int, ...], dtype: str) -> None:
    """Initial statistics have mean 0, a real variance of 1, and a count only on request."""
    stats = jn.init_running_stats(shape, jnp.dtype(dtype))
    sizes = (shape,) if isinstance(shape, int) else shape
    assert stats.mean.shape == stats.var.shape == sizes and stats.count is None
    assert stats.mean.dtype == jnp.dtype(dtype)
    assert stats.var.dtype == (jnp.float32 if dtype == "complex64" else jnp.dtype(dtype))
    np.testing.assert_array_equal(stats.mean, np.zeros(sizes))
    np.testing.assert_array_equal(stats.var, np.ones(sizes))
    count = jn.init_running_stats(shape, cumulative=True).count
    assert count is not None and count.dtype == jnp.int32
    np.testing.assert_array_equal(count, np.zeros(sizes))


@pytest.mark.parametrize("unbiased", [False, True])
def test_momentum_over_many_batches(unbiased: bool) -> None:
    """Running statistics are exponential averages of the means and (un)biased variances."""
    stats, mean, var = jn.init_running_stats(3), np.zeros(3), np.ones(3)
    for x in batches():
        stats = jn.update_running_stats(stats, jn.moments(x, 0), momentum=0.8, unbiased=unbiased)
        mean = 0.8 * mean + 0.2 * x.astype(float).mean(0)
        var = 0.8 * var + 0.2 * x.astype(float).var(0, ddof=int(unbiased))
    assert_close(stats.mean, mean)
    assert_close(stats.var, var)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cumulative_average(unbiased: bool) -> None:
    """momentum=None averages over all batches equally; the initial values do not matter."""
    stats = jn.init_running_stats(3, cumulative=True)
    for x in batches():
        stats = jn.update_running_stats(stats, jn.moments(x, 0), momentum=None, unbiased=unbiased)
    xs = batches().astype(float)
    np.testing.assert_array_equal(stats.count, 5)
    assert_close(stats.mean, xs.mean(1).mean(0))
    assert_close(stats.var, xs.var(1, ddof=int(unbiased)).mean(0))


def test_a_skipped_batch_is_not_a_batch_of_the_average() -> None:
    """A fully masked batch changes neither the average nor the number of batches."""
    stats = jn.init_running_stats(3, cumulative=True)
    nothing = jn.moments(batches()[0], 0, mask=jnp.zeros((8, 1), bool))
    for x in batches():
        stats = jn.update_running_stats(stats, jn.moments(x, 0), momentum=None)
        stats = jn.update_running_stats(stats, nothing, momentum=None)
    np.testing.assert_array_equal(stats.count, 5)
    assert_close(stats.mean, batches().astype(float).mean((0, 1)))


def test_features_without_values_keep_their_own() -> None:
    """Only the fully masked feature keeps its old values, bit for bit."""
    stats = jn.RunningStats(jnp.array([0.1, 0.2, 0.3]), jnp.array([1.1, 1.2, 1.3]))
    x = batches()[2]
    mask = jnp.array([[True, False, True]])
    new = jn.update_running_stats(stats, jn.moments(x, 0, mask=mask), momentum=0.5)
    assert new.mean[1] == stats.mean[1] and new.var[1] == stats.var[1]
    want = 0.5 * np.float64(stats.mean) + 0.5 * x.astype(float).mean(0)
    assert_close(new.mean[::2], want[::2])


def test_cumulative_average_of_a_feature_that_comes_late() -> None:
    """A feature whose first values come in the second batch gets that batch's mean, not half of it."""
    stats = jn.init_running_stats(3, cumulative=True)
    masks = jnp.array([[[True, False, True]], [[True, True, True]]])
    for x, mask in zip(batches(2), masks, strict=True):
        stats = jn.update_running_stats(stats, jn.moments(x, 0, mask=mask), momentum=None)
    assert_close(stats.mean[1], batches(2)[1].astype(float).mean(0)[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_state_is_rounded_once(dtype: str) -> None:
    """Narrow state is updated in float32 and rounded once when stored."""
    rng = np.random.default_rng(0)
    mean, var = (jnp.asarray(draw(rng, (200,), dtype, 4.0)) for _ in range(2))
    x = draw(rng, (8, 200), "float32", 1.0)
    new = jn.update_running_stats(jn.RunningStats(mean, var), jn.moments(x, 0), momentum=0.7)
    for got, old, batch in ((new.mean, mean, x.mean(0)), (new.var, var, x.var(0))):
        want = (0.7 * np.float64(old) + 0.3 * batch).astype(np.float32)
        assert got.dtype == jnp.dtype(dtype)
        # A difference in the last bit of float32 can fall on the other side of a tie.
        assert (np.asarray(got) == want.astype(jnp.dtype(dtype))).mean() > 0.97


def test_derivatives() -> None:
    """The new state is differentiable with respect to the old one, the moments and a traced momentum."""
    x = jnp.asarray(batches()[1])
    old = jnp.array([0.5, -1.0, 2.0])

    def f(old: jax.Array, x: jax.Array, momentum: jax.Array) -> jax.Array:
        stats = jn.RunningStats(old, jnp.ones(3))
        return jn.update_running_stats(stats, jn.moments(x, 0), momentum=momentum).mean

    by_old, by_x, by_momentum = jax.jit(jax.jacfwd(f, (0, 1, 2)))(old, x, jnp.float32(0.75))
    assert_close(by_old, 0.75 * np.eye(3))
    assert_close(by_x, np.broadcast_to(0.25 / 8 * np.eye(3)[:, None], (3, 8, 3)))
    assert_close(by_momentum, np.float64(old) - np.float64(x).mean(0))


def test_a_weight_of_zero_forgets_and_one_of_one_ignores() -> None:
    """NaN in the old state does not survive momentum=0, and NaN in the batch has no effect at momentum=1."""
    poisoned = jn.RunningStats(jnp.full(3, jnp.nan), jnp.full(3, jnp.inf))
    batch = jn.moments(batches()[0], 0)
    new = jn.update_running_stats(poisoned, batch, momentum=0.0)
    assert jnp.isfinite(new.mean).all() and jnp.isfinite(new.var).all()
    kept = jn.update_running_stats(
        jn.init_running_stats(3), jn.Moments(*poisoned[:2], jnp.ones(3)), momentum=1
    )
    np.testing.assert_array_equal(kept.mean, 0)
    np.testing.assert_array_equal(kept.var, 1)


def test_cumulative_average_in_double() -> None:
    """Statistics in float64 are averaged in float64."""
    with jax.enable_x64(True):
        stats = jn.init_running_stats(1, jnp.float64, cumulative=True)
        for value in (0.0, 0.0, 1.0):
            m = jn.Moments(jnp.full(1, value), jnp.ones(1), jnp.ones(1))
            stats = jn.update_running_stats(stats, m, momentum=None)
        np.testing.assert_allclose(stats.mean, 1 / 3, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.5, None])
@pytest.mark.parametrize("count", [[2.0, 100.0], [1.0, 3.0], [0.0, 3.0], [7.0], 7.0], ids=str)
def test_moments_in_numpy(count: list[float] | float, momentum: float | None) -> None:
    """They update as in jax: one count is for all features, and otherwise each feature has its own."""
    m = [np.array(a, np.float32) for a in ([3.0, 5.0], [1.0, 4.0], count)]
    stats = jn.init_running_stats(2, cumulative=momentum is None)
    update = partial(jn.update_running_stats, momentum=momentum, unbiased=True)
    got, same = (
        update(stats, jn.Moments(*map(as_, m))) for as_ in (cast(Any, np.asarray), jnp.asarray)
    )
    n = np.broadcast_to(np.asarray(count), 2)
    old_weight = 0.5 if momentum is not None else 0.0
    want = old_weight + (1 - old_weight) * m[1] * n / np.maximum(n - 1, 1)
    assert_close(got.var, np.where(n > 0, want, 1))
    chex.assert_trees_all_equal(got, same)


def test_weights_below_two_have_no_unbiased_variance() -> None:
    """There is none for a single value, and a batch may weigh less than that."""
    for weight in (0.25, 1.0, 1.5):
        m = jn.Moments(jnp.zeros(1), jnp.full(1, 3.0), jnp.full(1, weight))
        new = jn.update_running_stats(jn.init_running_stats(1), m, momentum=0.0, unbiased=True)
        np.testing.assert_array_equal(new.var, [3.0])
