"""Input norm: its statistics are those of all values so far, however many, as one array in float64."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw

FEATURES = 3
SIZES = (7, 1, 40)


def batches(mean: float = 5.0) -> list[Any]:
    """Batches of several sizes, each with other statistics."""
    rng = np.random.default_rng(0)
    return [draw(rng, (n, 2, FEATURES), "float32", mean + i, 1.0 + i) for i, n in enumerate(SIZES)]


def of_all(xs: Any, weights: Any) -> tuple[Any, Any, Any]:
    """The weighted mean and variance of each feature, and the total weight."""
    x, w = (np.concatenate([np.float64(a) for a in arrays]) for arrays in (xs, weights))
    count = w.sum((0, 1))
    mean = (w * x).sum((0, 1)) / count
    return mean, (w * (x - mean) ** 2).sum((0, 1)) / count, count


def total(stats: jn.InputStats) -> list[Any]:
    """Mean, var and count with what rounding left out."""
    return [np.float64(a) + np.float64(b) for a, b in zip(stats[:3], stats.remainder, strict=True)]


COUNTING: dict[str, Any] = {
    "all": lambda x: {},
    "mask": lambda x: {"mask": np.indices(x.shape).sum(0) % 3 != 0},
    "weights": lambda x: {"weights": np.linspace(0, 0.01, len(x), dtype=np.float32)[:, None, None]},
    "both": lambda x: {
        "mask": np.indices(x.shape).sum(0) % 2 == 0,
        "weights": np.linspace(0.5, 3, x.size, dtype=np.float32).reshape(x.shape),
    },
}


@pytest.mark.parametrize("counting", COUNTING)
def test_three_steps_and_an_evaluation(counting: str) -> None:
    """Outputs of every step, the statistics after it and an evaluation match those of all data so far."""
    xs, used, stats = batches(), [], jn.init_input_norm(FEATURES)
    mean: Any = None
    var: Any = None
    step = jax.jit(partial(jn.input_norm, max_abs=1.5))
    for number, x in enumerate(xs):
        options = COUNTING[counting](x)
        y, stats = step(x, stats, **options)
        weights = options.get("weights", 1.0) * options.get("mask", np.ones(x.shape))
        used.append(np.broadcast_to(weights, x.shape))
        mean, var, count = of_all(xs[: number + 1], used)
        for got, want in zip(total(stats), (mean, var, count), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-6)
        wanted = np.clip((x - mean) / np.sqrt(var + 1e-8), -1.5, 1.5)
        np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=2e-6)
    y = jn.input_norm_inference(xs[0], stats)
    np.testing.assert_allclose(y, (xs[0] - mean) / np.sqrt(var + 1e-8), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(jn.input_norm_inverse(y, stats), xs[0], rtol=1e-6)


@pytest.mark.parametrize("start", [2.0**24, 2.0**30, 2.0**40])
def test_counts_do_not_stick(start: float) -> None:
    """Counts grow by one at any size, also in a scan."""
    stats = jn.init_input_norm(1)._replace(count=jnp.full(1, start))
    x = jnp.ones((1001, 1, 1))

    @jax.jit
    def run(stats: jn.InputStats) -> jn.InputStats:
        return jax.lax.scan(lambda s, x: (jn.input_norm(x, s)[1], None), stats, x)[0]

    assert total(run(stats))[2] == start + 1001


def test_means_do_not_stick() -> None:
    """A million values after a billion others move mean and variance as much as they should."""
    stats = jn.InputStats(
        jnp.full(1, 100.0), jnp.ones(1), jnp.full(1, 1e9), jnp.zeros((3, 1), jnp.float32)
    )
    x = draw(np.random.default_rng(1), (1000, 1), "float32", 102.0, 1.0)

    @jax.jit
    def run(stats: jn.InputStats) -> jn.InputStats:
        return jax.lax.scan(lambda s, _: (jn.input_norm(x, s)[1], None), stats, length=1000)[0]

    mean, var, count = total(run(stats))
    share, new = 1e6 / (1e9 + 1e6), x.astype(np.float64)
    by = new.mean() - 100
    assert count == 1e9 + 1e6
    np.testing.assert_allclose(mean - 100, share * by, rtol=1e-3)
    expected = share * (new.var() - 1 + (1 - share) * by**2)
    np.testing.assert_allclose(var - 1, expected, rtol=1e-3)


def test_a_few_far_values_at_first_leave_no_trace() -> None:
    """Statistics stay accurate if a large batch follows a small one that is far away."""
    few: Any = np.full((1, 1), 1e4, np.float32)
    many: Any = np.tile(batches(0.0)[2].reshape(-1, 1), (1000, 1))
    step = jax.jit(jn.input_norm)
    _, stats = step(many, step(few, jn.init_input_norm(1))[1])
    x = np.concatenate([few, many]).astype(np.float64)
    for got, want in zip(total(stats), (x.mean(0), x.var(0), [len(x)]), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6)


def test_nothing_counted_changes_nothing() -> None:
    """Without counted values, even if they are NaN, statistics keep every bit."""
    x = batches()
    _, stats = jn.input_norm(x[0], jn.init_input_norm(FEATURES))
    unread: Any = np.full_like(x[1], np.nan)
    tried: list[Any] = [{"mask": jnp.zeros((1,), bool)}, {"weights": jnp.zeros(1)}]
    for options in tried:
        _, same = jn.input_norm(unread, stats, **options)
        chex.assert_trees_all_equal(same, stats)
    _, fresh = jn.input_norm(unread, jn.init_input_norm(FEATURES), mask=jnp.zeros((1,), bool))
    chex.assert_trees_all_equal(fresh, jn.init_input_norm(FEATURES))


def test_statistics_are_constants() -> None:
    """The derivative of y is 1 / sqrt(var + ε) with the updated variance, and nothing else has one."""
    x, old = batches()[0], jn.init_input_norm(FEATURES)
    _, stats = jn.input_norm(x, old)
    dy = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)

    def loss(x: Any, old: Any, weights: Any) -> Any:
        y, stats = jn.input_norm(x, old, weights=weights)
        return (y * dy).sum() + sum(leaf.sum() for leaf in stats)

    dx, *others = jax.grad(loss, (0, 1, 2))(x, old, jnp.ones(1))
    np.testing.assert_allclose(dx, dy / np.sqrt(stats.var + 1e-8), rtol=1e-5)
    assert not any(leaf.any() for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize("counting", ["weights", "mask"])
@pytest.mark.parametrize("groups", [None, [[0, 2], [3, 1]]])
def test_devices_are_one(groups: Any, counting: str) -> None:
    """Weights of devices may differ by orders of magnitude, and a device may have none."""
    x = draw(np.random.default_rng(4), (4, 5, FEATURES), "float32", 2.0, 3.0)
    x += np.arange(4, dtype=np.float32)[:, None, None]
    of_device: Any = np.array([1.0, 1e-3, 0.0, 50.0], np.float32)
    weights = np.outer(of_device, np.linspace(0, 1, 5, dtype=np.float32))[..., None]
    weights = weights if counting == "weights" else weights > 0.5

    @jax.jit
    @partial(jax.vmap, axis_name="devices")
    def run(x: Any, weights: Any) -> Any:
        options: Any = {"axis_name": "devices", "axis_index_groups": groups, counting: weights}
        return jn.input_norm(x, jn.init_input_norm(FEATURES), **options)[1]

    stats = run(x, weights)
    for group in groups or [[0, 1, 2, 3]]:
        whole = [np.broadcast_to(weights[i], x[i].shape)[None] for i in group]
        expected = of_all([x[i][None] for i in group], whole)
        for device in group:
            own = jax.tree.map(lambda leaf, i=device: leaf[i], stats)
            for got, want in zip(total(own), expected, strict=True):
                np.testing.assert_allclose(got, want, rtol=3e-6)


def test_a_tree_of_inputs() -> None:
    """The recipe of the docstring keeps statistics for every leaf."""
    inputs = {"image": batches()[0], "speed": np.arange(12, dtype=np.float32).reshape(6, 2)}
    stats = jax.tree.map(lambda x: jn.init_input_norm(x.shape[-1]), inputs)
    stats = jax.tree.map(lambda x, s: jn.input_norm(x, s)[1], inputs, stats)
    y = jax.tree.map(jn.input_norm_inference, inputs, stats)
    np.testing.assert_allclose(y["speed"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(y["image"].std((0, 1)), 1, rtol=1e-5)
