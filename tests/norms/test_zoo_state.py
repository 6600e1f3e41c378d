"""Running statistics of other norms: after three steps, on several devices, and in evaluation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxnorm as jn

EPSILON = 1e-3
V = jnp.linspace(0.5, 1.5, 4)
WEIGHTS = jnp.array([0.5, -1.0, 1.0])
DEVICES, EACH = 4, 6

Step = Callable[..., tuple[Any, Any]]
STEPS: dict[str, Step] = {
    "batch_renorm": partial(jn.batch_renorm, rmax=1.5, dmax=0.5, epsilon=EPSILON, momentum=0.8),
    "batch_renorm, crossq": partial(
        jn.batch_renorm, rmax=1.5, dmax=0.5, form="crossq", epsilon=EPSILON, momentum=0.8
    ),
    "evo_norm_b0": lambda x, stats, **more: jn.evo_norm_b0(
        x, stats, V, epsilon=EPSILON, momentum=0.8, **more
    ),
    "evo_norm_b1": partial(jn.evo_norm_b1, epsilon=EPSILON, momentum=0.8),
    "evo_norm_b2": partial(jn.evo_norm_b2, epsilon=EPSILON, momentum=0.8),
    "input_norm": partial(jn.input_norm, epsilon=EPSILON),
    "iterative_whitening": lambda x, stats, **more: jn.iterative_whitening(
        x, stats, epsilon=EPSILON, momentum=0.8, **more
    ),
    "mean_only": partial(jn.mean_only_batch_norm, momentum=0.8),
    "switchable": lambda x, stats, **more: jn.switchable_norm(
        x, stats, WEIGHTS, WEIGHTS, epsilon=EPSILON, momentum=0.8, **more
    ),
}
over_steps = pytest.mark.parametrize("name", STEPS)


def start(name: str) -> Any:
    """The initial state."""
    starts: dict[str, Any] = {
        "input_norm": jn.init_input_norm,
        "iterative_whitening": jn.init_whitening,
    }
    return starts.get(name, jn.init_running_stats)(4)


def batch(seed: int) -> np.ndarray:
    """Images of one batch."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(DEVICES * EACH, 3, 2, 4)) @ np.random.default_rng(9).normal(
        size=(4, 4)
    )
    return (mixed + seed).astype(np.float32)


def expected_after(name: str, batches: list[np.ndarray]) -> list[np.ndarray]:
    """The mean, and the variance or matrix, from the definition in float64."""
    if name == "input_norm":  # it weights all values equally
        rows = np.concatenate([np.float64(x).reshape(-1, 4) for x in batches])
        return [rows.mean(0), rows.var(0)]
    mean, other = np.zeros(4), np.eye(4) if name == "iterative_whitening" else np.ones(4)
    for x in map(np.float64, batches):
        rows = x.reshape(-1, 4)
        mean = 0.8 * mean + 0.2 * rows.mean(0)
        if name == "iterative_whitening":
            covariance = np.cov(rows, rowvar=False, bias=True) + EPSILON * np.eye(4)
            unit, p = covariance / np.trace(covariance), np.eye(4)
            for _ in range(5):
                p = 1.5 * p - 0.5 * p @ p @ p @ unit
            other = 0.8 * other + 0.2 * p / np.sqrt(np.trace(covariance))
        elif name == "batch_renorm":  # it averages the standard deviation
            std = 0.8 * np.sqrt(other + EPSILON) + 0.2 * np.sqrt(rows.var(0) + EPSILON)
            other = std**2 - EPSILON
        else:
            other = 0.8 * other + 0.2 * rows.var(0)
    return [mean, other]


@pytest.mark.every_case
@over_steps
def test_after_three_steps(name: str) -> None:
    """After three steps in a scan, the state matches float64 and is float32 for any input dtype."""
    batches = [batch(seed) for seed in range(3)]

    @jax.jit
    def run(stats: Any, xs: jax.Array) -> Any:
        return jax.lax.scan(lambda s, x: STEPS[name](x, s)[::-1], stats, xs)[0]

    stats = run(start(name), np.stack(batches))
    for ours, book in zip(stats[:2], expected_after(name, batches), strict=True):
        np.testing.assert_allclose(ours, book, rtol=2e-5, atol=2e-5)
    halved = run(start(name), jnp.asarray(np.stack(batches), jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(halved)} == {jnp.dtype(jnp.float32)}


@over_steps
def test_state_that_comes_back_is_not_traced_again(name: str) -> None:
    """The returned state has the dtypes, shapes and weak types of the given one, so nothing is retraced."""
    chex.clear_trace_counter()  # it knows functions by name

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(x: Any, stats: Any) -> Any:
        return STEPS[name](x, stats)

    stats = start(name)
    for seed in range(3):
        _, stats = step(batch(seed), stats)


@pytest.mark.sampled
@pytest.mark.parametrize("masked", [False, True])
@over_steps
def test_shards_are_one(name: str, masked: bool) -> None:
    """Under shard_map, which checks that statistics are replicated, results match a single device."""
    x = batch(0)
    counted = jnp.arange(len(x)).reshape(-1, 1, 1, 1) % 5 < 3 if masked else None
    mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("devices")

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=split, out_specs=(split, PartitionSpec()))
    def step(x: Any, counted: Any) -> Any:
        return STEPS[name](x, start(name), mask=counted, axis_name="devices")

    y, stats = step(x, counted)
    expected, whole = jax.jit(partial(STEPS[name], mask=counted))(x, start(name))
    kept = np.ones(len(x), bool) if counted is None else np.asarray(counted).reshape(-1)
    np.testing.assert_allclose(y[kept], expected[kept], rtol=2e-4, atol=2e-5)
    for ours, theirs in zip(jax.tree.leaves(stats), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("masked", [False, True])
@over_steps
def test_devices_are_one(name: str, masked: bool) -> None:
    """Four devices that share an axis act as one, even if some elements, or all, are masked on a device."""
    x = batch(0)
    counted = np.ones((DEVICES, EACH, 1, 1, 1), bool)
    if masked:
        counted[1, 2:], counted[3] = False, False
    flat = {"mask": jnp.asarray(counted.reshape(-1, 1, 1, 1))} if masked else {}
    split = {"mask": jnp.asarray(counted)} if masked else {}
    y, stats = jax.jit(partial(STEPS[name], **flat))(x, start(name))

    def one(x: Any, **mask: Any) -> Any:
        return STEPS[name](x, start(name), axis_name="devices", **mask)

    ours, each = jax.jit(jax.vmap(one, axis_name="devices"))(
        x.reshape(DEVICES, EACH, *x.shape[1:]), **split
    )
    kept = counted.reshape(-1)
    np.testing.assert_allclose(ours.reshape(x.shape)[kept], y[kept], rtol=2e-4, atol=2e-5)
    for leaf, whole in zip(jax.tree.leaves(each), jax.tree.leaves(stats), strict=True):
        for device in range(DEVICES):
            np.testing.assert_allclose(leaf[device], whole, rtol=2e-5, atol=2e-5)


@over_steps
def test_evaluation_depends_on_no_other_example(name: str) -> None:
    """In evaluation, examples do not depend on each other."""
    x = batch(1)
    _, stats = STEPS[name](batch(0), start(name))
    evaluate: dict[str, Callable[[Any], Any]] = {
        "batch_renorm": lambda x: jn.batch_renorm_inference(x, stats),
        "batch_renorm, crossq": lambda x: jn.batch_renorm_inference(x, stats),
        "evo_norm_b0": lambda x: jn.evo_norm_b0_inference(x, stats, V),
        "evo_norm_b1": lambda x: jn.evo_norm_b1_inference(x, stats),
        "evo_norm_b2": lambda x: jn.evo_norm_b2_inference(x, stats),
        "input_norm": lambda x: jn.input_norm_inference(x, stats),
        "iterative_whitening": lambda x: jn.iterative_whitening_inference(x, stats),
        "mean_only": lambda x: jn.mean_only_batch_norm_inference(x, stats),
        "switchable": lambda x: jn.switchable_norm_inference(x, stats, WEIGHTS, WEIGHTS),
    }
    whole, alone = evaluate[name](x), evaluate[name](x[:1])
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-5, atol=1e-6)
