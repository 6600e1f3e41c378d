"""`pool_replicas`: statistics of all replicas from those that each has kept separately."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import nnx as jnx, tools
from tests.stands_for import CLASSES, ROWS, made

# Four replicas of 32 values each, with means 0, 2, 4 and 6.
X = (
    np.random.default_rng(0)
    .normal(np.arange(0, 8, 2)[:, None, None], size=(4, 32, 3))
    .astype(np.float32)
)


def replicas() -> jn.RunningStats:
    """Exact statistics of each replica, stacked."""
    return jn.RunningStats(jnp.asarray(X.mean(1)), jnp.asarray(X.var(1)))


def test_averaging_variances_is_not_enough() -> None:
    """The usual pmean gives about 0.96 instead of about 5.97."""
    truth = X.astype(np.float64).reshape(-1, 3).var(0)
    pooled = tools.pool_replicas(replicas(), axis=0)
    np.testing.assert_allclose(pooled.var, truth, rtol=1e-5)
    np.testing.assert_allclose(pooled.mean, X.reshape(-1, 3).mean(0), rtol=1e-5)
    assert (np.asarray(replicas().var.mean(0)) < truth / 4).all()


def test_mapped_and_stacked_agree() -> None:
    """In pmap it replaces pmean and keeps the device axis; it works for a collection of layers."""
    tree = {"a": replicas()._asdict(), "b": {"c": replicas()._asdict()}}
    del tree["a"]["count"], tree["b"]["c"]["count"]
    tree["b"]["c"]["mean"] += 1
    stacked = tools.pool_replicas(tree, axis=0)
    devices = jax.devices()[:4]
    mapped = jax.pmap(lambda s: tools.pool_replicas(s, axis_name="r"), "r", devices=devices)(tree)
    assert jax.tree.structure(stacked) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(mapped), strict=True):
        np.testing.assert_allclose(np.broadcast_to(a, b.shape), b, rtol=1e-6)


def test_last_axis_half_precision_and_the_rest() -> None:
    """Works for any axis and keeps dtypes; other leaves come from the first replica."""
    tree = {
        "mean": jnp.array([[0.0, 300.0]], jnp.float16),  # its square overflows float16
        "var": jnp.array([[1.0, 1.0]], jnp.float16),
        "count": jnp.array([[7, 7]]),
        "kernel/u": jnp.array([[0.5, 0.5]]),
    }
    pooled = tools.pool_replicas(tree, axis=-1)
    want = {"mean": [150.0], "var": [22501.0], "count": [7], "kernel/u": [0.5]}
    for name, value in want.items():
        np.testing.assert_array_equal(pooled[name], np.asarray(value, tree[name].dtype))
        assert pooled[name].dtype == tree[name].dtype


def test_state_of_nnx() -> None:
    """Works for the state of an NNX model that was created for all replicas at once."""

    @nnx.vmap(in_axes=0)
    def statistics(x: Any) -> Any:
        layer = jnx.BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0))
        layer(x)
        return nnx.state(layer, nnx.BatchStat)

    pooled: Any = tools.pool_replicas(statistics(jnp.asarray(X)), axis=0)
    np.testing.assert_allclose(pooled["var"][...], X.reshape(-1, 3).var(0), rtol=1e-5)


@pytest.mark.parametrize("given", [{}, {"axis": 0, "axis_name": "r"}])
def test_one_of_two(given: dict[str, Any]) -> None:
    """The replicas must be named in exactly one way."""
    with pytest.raises(ValueError, match="exactly one of axis and axis_name must be given"):
        tools.pool_replicas(replicas(), **given)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"params": jnp.ones(3)}, "must hold a mean and a var for at least one layer; got params"),
        ({}, "got an empty tree"),
        ({"n": {"var": jnp.ones(3)}}, "got n/var of shape .* and no mean"),
        ({"mean": jnp.ones(2), "var": jnp.ones(3)}, r"got .*\(3,\) and a mean of shape \(2,\)"),
    ],
)
def test_no_statistics(tree: Any, message: str) -> None:
    """A tree without statistics, or with half of them, raises an error that lists what it has."""
    with pytest.raises(ValueError, match=message):
        tools.pool_replicas(tree, axis=0)


KEEPING = [name for name in CLASSES if hasattr(getattr(jnx, name), "running_norm")]
REFUSED = {
    "IterativeWhitening": "got layer/mean without one.* set axis_name",
    "InputNorm": "got layer/remainder of an InputNorm.* with jaxnorm.pool",
}


@pytest.mark.every_case
@pytest.mark.parametrize("momentum", [0.5, None])
@pytest.mark.parametrize("name", KEEPING)
def test_statistics_of_every_norm(name: str, momentum: float | None) -> None:
    """All that change are pooled, or the layer is refused by its path; counts of batches do not weigh."""
    fields = {**ROWS[name].base}
    fields |= {"track_running_stats": True} if name == "InstanceNorm" else {}
    fields |= {"momentum": momentum} if hasattr(made("nnx", name, fields), "momentum") else {}
    stats = nnx.to_pure_dict(nnx.state(made("nnx", name, fields), nnx.BatchStat))
    tree = {"layer": jax.tree.map(lambda a: jnp.stack([a, a + 2]), stats)}
    if name in REFUSED:
        for state in (tree, {"other": {"mean": jnp.ones(2), "var": jnp.ones(2)}, **tree}):
            with pytest.raises(ValueError, match=REFUSED[name]):
                tools.pool_replicas(state, axis=0)
        return
    pooled = tools.pool_replicas(tree, axis=0)["layer"]
    mean, var = stats.pop("mean"), stats.pop("var")
    np.testing.assert_allclose(pooled.pop("mean"), mean + 1, rtol=1e-6)
    np.testing.assert_allclose(pooled.pop("var"), var + 1 + 1, rtol=1e-6)
    assert stats.keys() <= {"count", "steps", "scale", "bias"}  # of the first replica
    jax.tree.map(np.testing.assert_array_equal, pooled, stats)


def test_input_norm_as_the_error_says() -> None:
    """Pooling its moments by their counts gives the statistics of all values."""
    rows = jnp.asarray(X.reshape(-1, 3))
    parts = rows[:7], rows[7:]
    each = [jn.input_norm(x, jn.init_input_norm(3))[1] for x in parts]
    mean, var, count = (jnp.stack(leaves) for leaves in list(zip(*each, strict=True))[:3])
    pooled = jn.pool(jn.Moments(mean, var, count), 0)
    np.testing.assert_allclose(pooled.mean[0], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(pooled.var[0], rows.var(0), rtol=1e-5)
