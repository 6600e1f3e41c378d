"""Statistics of no value and of a single value."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.calls import arguments, functions

EMPTY: dict[str, Callable[[], jn.Moments]] = {
    "moments": lambda: jn.moments(jnp.ones((2, 0, 3)), 1),
    "masked": lambda: jn.moments(jnp.ones((2, 5, 3)), 1, mask=jnp.zeros((2, 5, 3), bool)),
    "zeros": lambda: _uncounted(0.0),
    "nan": lambda: _uncounted(jnp.nan),
}
TOGETHER: dict[str, Callable[[jn.Moments, jn.Moments], jn.Moments]] = {
    "combine": jn.combine,
    "pool": lambda a, b: jn.pool(_joined(a, b), 1),
    "pool over all": lambda a, b: jn.pool(_joined(a, b), (0, 1, 2)),
    "devices": lambda a, b: _of_devices(),
}


def _uncounted(value: float) -> jn.Moments:
    """Moments with a count of zero, as other code may make them."""
    return jn.Moments(*(jnp.full((2, 1, 3), a) for a in (value, value, 0.0)))


def _joined(a: jn.Moments, b: jn.Moments) -> jn.Moments:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), a, b)


def _of_devices() -> jn.Moments:
    """Pooled moments of two devices whose elements are all masked."""
    x, mask = jnp.ones((2, 5, 3)), jnp.zeros((2, 5, 3), bool)
    over_devices = jax.vmap(
        lambda x, mask: jn.moments(x, 0, mask=mask, axis_name="d"), axis_name="d"
    )
    return over_devices(x, mask)


def assert_nothing(m: jn.Moments) -> None:
    """Checks for mean 0, variance 1 and count 0, exactly."""
    nothing = (jnp.zeros_like(m.mean), jnp.ones_like(m.mean), jnp.zeros_like(m.mean))
    chex.assert_trees_all_equal(tuple(m), nothing)


@pytest.mark.parametrize("b", EMPTY)
@pytest.mark.parametrize("a", EMPTY)
def test_two_empty_sides_are_nothing(a: str, b: str) -> None:
    """However the count of zero arises, normalizing with both sides combined changes nothing."""
    for together in TOGETHER.values():
        assert_nothing(together(EMPTY[a](), EMPTY[b]()))


def test_moments_of_nothing() -> None:
    """The package's own moments of no elements have mean 0, variance 1 and count 0."""
    assert_nothing(EMPTY["moments"]())
    assert_nothing(EMPTY["masked"]())


def test_one_feature_of_several_is_empty() -> None:
    """An empty feature gets mean 0 and variance 1; the other feature is unchanged."""
    count = jnp.array([[0.0, 4.0]])
    m = jn.Moments(jnp.array([[7.0, 7.0]]), jnp.array([[3.0, 3.0]]), count)
    for pooled in (jn.combine(m, m), jn.pool(jax.tree.map(lambda a: jnp.tile(a, (2, 1)), m), 0)):
        chex.assert_trees_all_equal(
            tuple(pooled), tuple(map(jnp.array, ([[0.0, 7.0]], [[1.0, 3.0]], [[0.0, 8.0]])))
        )


@pytest.mark.parametrize("momentum", [0.5, None])
def test_unbiased_variance_of_few(momentum: float | None) -> None:
    """Variances get a factor of n / (n - 1), except for one value; without values the state stays."""
    count = jnp.array([0.0, 1.0, 2.0, 5.0])
    batch = jn.Moments(jnp.full(4, 3.0), jnp.full(4, 8.0), count)
    stats = jn.init_running_stats(4, cumulative=True)
    new = jn.update_running_stats(stats, batch, momentum=momentum, unbiased=True)
    old_weight = momentum or 0.0
    want = old_weight + (1 - old_weight) * np.array([8.0, 8.0, 16.0, 10.0])
    np.testing.assert_allclose(new.var, [1.0, *want[1:]], rtol=1e-6)


@pytest.mark.parametrize("name", functions("x", "unbiased"))
@pytest.mark.parametrize("masked", [False, True])
def test_unbiased_running_variance_of_one_value(name: str, masked: bool) -> None:
    """With one value, or one unmasked value, the variance is 0 instead of 0 / 0."""
    function, given = getattr(jn, name), arguments(name)
    shape = (3, 5, 4) if masked else (1, 1, 4)
    given["x"] = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    if masked:  # one position per channel, in the second example
        given["mask"] = np.zeros(shape, bool)
        given["mask"][1, range(4), range(4)] = True
    y, new = function(**given, momentum=0.5, unbiased=True)
    assert jnp.isfinite(y).all()
    np.testing.assert_allclose(new.var, given["stats"].var / 2, rtol=1e-6)
    assert jnp.isfinite(new.mean).all()
