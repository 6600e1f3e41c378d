"""`TrainState`, `average` and `keep_finite`: in a loop with a NaN batch, and in checkpoints."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.modules import assert_equal
from tests.tools.models import MLP, ROWS, NnxMLP, Subject, linen, nnx_model, sharded

NAN = np.where(ROWS > 4, np.nan, ROWS).astype(np.float32)
ANY_CLASS: Any = jnx.BatchNorm
pytestmark = pytest.mark.usefixtures("users_promotion")  # optax promotes


@cache
def mlp() -> Subject:
    """A model with counts."""
    return linen(MLP(partial(jnl.BatchNorm, momentum=None)), ROWS)


@cache
def initial() -> tools.TrainState:
    """The state before the first step."""
    return tools.TrainState.of(mlp().model, mlp().variables, optax.sgd(1e-2, momentum=0.9))


@jax.jit
def step(state: Any, average: Any, x: Any) -> Any:
    """A training step that skips non-finite updates and averages the others."""

    def loss_of(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        y, updated = state.apply_fn(variables, x, True, mutable=["batch_stats"])
        return ((y - 1) ** 2).mean(), updated

    (loss, updated), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    new = state.apply_gradients(grads=grads, **updated)
    kept = tools.keep_finite(state, new, loss)
    return kept, tools.average(average, kept.variables, 0.5), loss


def trained(batches: list[Any]) -> tuple[Any, Any, list[float]]:
    """The state, average and losses after a step on each batch."""
    state, average, losses = initial(), mlp().variables, []
    for x in batches:
        state, average, loss = step(state, average, x)
        losses.append(float(loss))
    return state, average, losses


def test_a_nan_batch_is_skipped_whole() -> None:
    """Weights, statistics, counts and optimizer are the same as without the batch."""
    state, average, losses = trained([ROWS, NAN, ROWS + 1])
    want, _, _ = trained([ROWS, ROWS + 1])
    assert np.isnan(losses[1]) and np.isfinite([losses[0], losses[2]]).all()
    assert_equal(jax.tree.leaves(state), jax.tree.leaves(want))
    assert int(state.step) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(average))


def test_counts_stay_integers() -> None:
    """Counts keep their integer dtype in the state and in the average, which has the new count."""
    state, average, _ = trained([ROWS, ROWS])
    for stats in (state.batch_stats, average["batch_stats"]):
        assert stats["first"]["count"].dtype == jnp.int32
        np.testing.assert_array_equal(stats["first"]["count"], state.batch_stats["first"]["count"])
    before = mlp().variables
    assert jax.tree.map(lambda a: (a.shape, a.dtype), average) == jax.tree.map(
        lambda a: (a.shape, a.dtype), {name: before[name] for name in average}
    )


def test_sharded_steps() -> None:
    """Sharded steps give the results of one device."""
    one, many = trained([ROWS, NAN]), trained([sharded(ROWS), sharded(NAN)])
    for a, b in zip(jax.tree.leaves(one[:2]), jax.tree.leaves(many[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["orbax", "flax"])
def test_checkpoints(way: str, tmp_path: Path) -> None:
    """The state is restored bit for bit, and training continues."""
    state, average, _ = trained([ROWS])
    empty = jax.tree.map(jnp.zeros_like, state)
    if way == "flax":
        again: Any = serialization.from_bytes(empty, serialization.to_bytes(state))
    else:
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            again = checkpointer.restore(tmp_path / "state", empty)
    assert_equal(jax.tree.leaves(again), jax.tree.leaves(state))
    np.testing.assert_array_equal(step(again, average, ROWS)[2], step(state, average, ROWS)[2])


def test_the_averaged_weights_recalibrated() -> None:
    """Averages with exact statistics evaluate like training."""
    _, average, _ = trained([ROWS, ROWS + 1])
    subject = mlp().like(average)
    exact = tools.recalibrate(subject.model, [ROWS], variables=average, run=subject.evaluate)
    want = subject.output(train=True)
    np.testing.assert_allclose(subject.like(exact).output(), want, rtol=1e-4, atol=1e-5)


def test_average_in_double_precision() -> None:
    """The average is decay · old + (1 - decay) · new, and keeps the dtype."""
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 1000)).astype(np.float32)
    for decay in (0.0, 0.999, 1.0, jnp.float32(0.5)):
        got = tools.average({"a": old}, {"a": new}, decay)["a"]
        d = float(decay)
        np.testing.assert_allclose(got, d * old.astype(float) + (1 - d) * new, rtol=1e-5, atol=1e-7)
    half = tools.average(jnp.bfloat16(1), jnp.bfloat16(2), 0.25)
    assert half.dtype == jnp.bfloat16 and half == 1.75


def test_nnx_states() -> None:
    """NNX states are supported, including the keys of random streams."""
    subject = nnx_model(NnxMLP(jnx.BatchNorm, dropout=0.5))
    before: Any = nnx.state(nnx.clone(subject.model))
    after: Any = nnx.state(subject.step()[1].model)
    average: Any = tools.average(before, after, 0.5)
    want = (before["first"]["mean"][...] + after["first"]["mean"][...]) / 2
    np.testing.assert_allclose(average["first"]["mean"][...], want, rtol=1e-6)
    kept: Any = tools.keep_finite(before, after)
    np.testing.assert_array_equal(kept["first"]["mean"][...], after["first"]["mean"][...])
    kept = tools.keep_finite(before, after, jnp.nan)
    np.testing.assert_array_equal(kept["first"]["mean"][...], before["first"]["mean"][...])
    model = nnx.clone(subject.model)
    nnx.update(model, average)
    assert model(ROWS, False).shape == (16, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_keep_finite_of_any_leaf(bad: float) -> None:
    """Floating and complex leaves of any width are checked; integers and booleans are not."""
    old = {
        "f": jnp.ones(2),
        "h": jnp.ones(2, jnp.bfloat16),
        "c": jnp.ones(2, jnp.complex64),
        "i": 1,
        "b": jnp.array(False),
        "k": jax.random.key(0),
    }
    new = {**old, "i": 2, "b": jnp.array(True)}
    assert int(tools.keep_finite(old, new)["i"]) == 2
    for name in ("f", "h", "c"):
        worse = {**new, name: old[name].at[1].set(bad)}
        kept = tools.keep_finite(old, worse)
        assert int(kept["i"]) == 1 and not kept["b"]
        assert (kept[name] == old[name]).all() and kept[name].dtype == old[name].dtype


def test_state_of_a_model_without_norm() -> None:
    """A state may have no statistics, and its variables can still be applied."""
    model = nn.Dense(2)
    state = tools.TrainState.of(model, model.init(jax.random.key(0), ROWS), optax.sgd(0.1))
    assert state.batch_stats == {}
    assert state.apply_fn(state.variables, ROWS).shape == (16, 2)


def test_state_created_without_statistics() -> None:
    """`create` is Flax's, and batch_stats has a default: its variables can be applied, too."""
    model = nn.Dense(2)
    params = model.init(jax.random.key(0), ROWS)["params"]
    for given in ({}, {"batch_stats": None}):
        state = tools.TrainState.create(
            apply_fn=model.apply, params=params, tx=optax.sgd(0.1), **given
        )
        assert state.apply_fn(state.variables, ROWS).shape == (16, 2)


def test_state_of_a_model_without_parameters() -> None:
    """A state may have no parameters, only statistics."""
    model = nn.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)
    state = tools.TrainState.of(model, model.init(jax.random.key(0), ROWS), optax.sgd(0.1))
    assert state.params == {} and set(state.batch_stats) == {"mean", "var"}
    assert state.apply_fn(state.variables, ROWS).shape == ROWS.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: tools.TrainState.of(s.model, s.variables["params"], optax.sgd(1)),
            "got .'Dense_0'",
        ),
        (lambda s: tools.TrainState.of(s.model, None, optax.sgd(1)), "got NoneType"),
        (lambda s: tools.TrainState.of(ANY_CLASS, s.variables, optax.sgd(1)), "got ModuleMeta"),
        (lambda s: tools.average(s.variables, s.variables, 99.9), "got decay=99.9"),
        (
            lambda s: tools.average(s.variables["params"], s.variables, 0.9),
            r"got \['Dense_0'\]\['bias'\] of shape \(4,\) in old and of shape none in new",
        ),
        (
            lambda s: tools.keep_finite({"a": jnp.ones(3)}, {"a": jnp.ones(1)}),
            r"got \['a'\] of shape \(3,\) in old and of shape \(1,\) in new",
        ),
    ],
    ids=["variables", "no variables", "model", "decay", "trees", "shapes"],
)
def test_what_does_not_belong_together(call: Any, message: str) -> None:
    """The error for arguments that do not belong together says what was given."""
    with pytest.raises(ValueError, match=message):
        call(mlp())
