"""Every NNX module in a model: training, and the transforms of Flax and JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnorm import nnx as jnx
from tests.modules import assert_close, called, compiled, flat, moved, normal
from tests.nnx.models import MODELS, STATEFUL, forward, model_of, numbers
from tests.selecting import thorough_but

X = normal((4, 5, 6))
TARGET = normal((4, 5, 6), seed=1)
BRIEFLY = ["BatchNorm", "LayerNorm", "SpectralNorm"]  # in `make test`
every_model = pytest.mark.parametrize("name", thorough_but(MODELS, *list(MODELS)[::2]))
several = pytest.mark.parametrize("name", thorough_but(["LayerNorm", *STATEFUL], *BRIEFLY))
stateful = pytest.mark.parametrize("name", thorough_but(STATEFUL, *BRIEFLY))


def loss_of(model: Any, x: jax.Array) -> jax.Array:
    """The training loss."""
    return ((model(x) - TARGET) ** 2).mean()


def gradients(model: Any, x: jax.Array) -> Any:
    """The loss and the gradients of all parameters."""
    return nnx.value_and_grad(loss_of)(model, x)


# --- training ------------------------------------------------------------------------------------


@every_model
def test_training_with_an_optimizer(name: str) -> None:
    """The loss falls, and only the optimizer changes parameters, all of them."""
    model = model_of(name)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def update(model: Any, optimizer: Any, grads: Any) -> None:
        optimizer.update(model, grads)

    first, before, losses = numbers(model), numbers(model, nnx.Param), []
    for _ in range(8):
        loss, grads = called(model, gradients, X)
        assert moved(before, numbers(model, nnx.Param)) == set(), "a call wrote a parameter"
        update(model, optimizer, grads)
        after = numbers(model, nnx.Param)
        expected = {n: before[n] - 0.1 * np.asarray(g) for n, g in flat(grads).items()}
        assert_close(after, expected, 1e-6)
        before = after
        losses.append(float(loss))
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    # A bias before a mean is subtracted has no effect and moves at most by rounding.
    idle = {"linear/bias"}
    assert moved(first, numbers(model)) >= {*numbers(model, (nnx.Param, nnx.BatchStat))} - idle
    model.eval()
    trained = numbers(model)
    called(model, forward, X)
    assert moved(trained, numbers(model)) == set()


@several
def test_compiled_and_pure_are_one(name: str) -> None:
    """Outputs and state agree under `nnx.jit`, in `jax.jit` with split and merge, and without jit."""
    lifted, pure, eager = (model_of(name) for _ in range(3))
    run = nnx.jit(forward)
    for _ in range(2):
        y = called(pure, forward, X)
        assert_close(run(lifted, X), y, 1e-5)
        if name in ("BatchNorm", "SpectralNorm"):
            assert_close(eager(X), y, 1e-5)
            assert_close(numbers(eager), numbers(pure), 1e-5)
    assert_close(numbers(lifted), numbers(pure), 1e-5)


@stateful
def test_modes_reach_all(name: str) -> None:
    """``eval`` and ``train`` of the model, and a view of it, set the mode of every norm inside."""
    model = model_of(name)

    batches = iter(range(1, 9))

    def moving(model: Any) -> set[str]:
        before = numbers(model, nnx.Not(nnx.RngState))
        called(model, forward, next(batches) * X)
        return moved(before, numbers(model, nnx.Not(nnx.RngState)))

    stats = set(numbers(model, nnx.BatchStat))
    assert moving(model) == stats and stats
    model.eval()
    assert moving(model) == set()
    model.train()
    view = nnx.view(model, use_running_average=True)
    assert moving(view) == set() and moving(model) == stats


# --- transforms ----------------------------------------------------------------------------------


@several
def test_an_ensemble(name: str) -> None:
    """`nnx.vmap` creates, calls and differentiates three models, each as if it were alone."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> Any:
        return MODELS[name](rngs)

    models = make(nnx.Rngs(0))
    graph, state = nnx.split(models)
    first = nnx.merge(graph, jax.tree.map(lambda a: a[1], state))

    losses, grads = called(models, nnx.vmap(gradients, in_axes=(0, None)), X)
    loss, alone_grads = called(first, gradients, X)
    assert losses.shape == (3,) and len(set(losses.tolist())) == 3
    assert_close(losses[1], loss, 1e-5)
    second = jax.tree.map(lambda a: a[1], (grads, nnx.state(models)))
    assert_close([flat(s) for s in second], [flat(alone_grads), numbers(first)], 1e-5)


@stateful
def test_layers_in_a_scan(name: str) -> None:
    """`nnx.scan` over stacked layers applies them in sequence, state included."""

    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def make(rngs: nnx.Rngs) -> Any:
        return MODELS[name](rngs)

    layers = make(nnx.Rngs(0))
    graph, state = nnx.split(layers)
    each = [nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], state)) for i in range(2)]

    def scanned(layers: Any, x: jax.Array) -> jax.Array:
        body = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return body(x, layers)

    y = X
    for layer in each:
        y = called(layer, forward, y)
    assert_close(called(layers, scanned, X), y, 1e-5)
    stacked = jax.tree.map(lambda *a: np.stack(a), *map(numbers, each))
    assert_close(numbers(layers), stacked, 1e-5)


@stateful
def test_state_as_the_carry_of_a_scan(name: str) -> None:
    """As the carry of `jax.lax.scan` over steps, the state keeps its structure and dtypes."""
    model, scanned = model_of(name), model_of(name)
    graph, state = nnx.split(scanned)

    def step(state: Any, x: jax.Array) -> Any:
        merged = nnx.merge(graph, state)
        return nnx.state(merged), merged(x)

    batches = jnp.stack([X, 2 * X + 1, -X])
    state, ys = compiled(lambda s: jax.lax.scan(step, s, batches), state)
    nnx.update(scanned, state)
    for x, y in zip(batches, ys, strict=True):
        assert_close(y, called(model, forward, x), 1e-5)
    assert_close(numbers(scanned), numbers(model), 1e-5)


@stateful
def test_remat(name: str) -> None:
    """`nnx.remat` gives the same gradients, and updates the state once."""
    plain, remat = model_of(name), model_of(name)

    def rematerialized(model: Any, x: jax.Array) -> Any:
        return nnx.grad(lambda m, x: ((nnx.remat(forward)(m, x) - TARGET) ** 2).mean())(model, x)

    expected = called(plain, gradients, X)[1]
    assert_close(flat(called(remat, rematerialized, X)), flat(expected), 1e-5)
    assert_close(numbers(remat), numbers(plain), 1e-5)


@pytest.mark.parametrize("tracked", [False, True])
def test_statistics_shared_along_a_mapped_axis(tracked: bool) -> None:
    """With ``axis_name`` under `nnx.vmap`, shards of a batch, or of positions, share their statistics."""
    norm: Any = jnx.InstanceNorm if tracked else jnx.BatchNorm
    options: Any = {"track_running_stats": True} if tracked else {}
    whole, sharded = (
        norm(6, axis_name=axis, momentum=0.5, rngs=nnx.Rngs(0), **options) for axis in (None, "i")
    )
    x = normal((4, 8, 6))
    axis = 1 if tracked else 0
    shards = jnp.stack(jnp.split(x, 2, axis))

    def mapped(model: Any, x: jax.Array) -> Any:
        axes = nnx.StateAxes({...: None})
        return nnx.vmap(forward, in_axes=(axes, 0), out_axes=0, axis_name="i")(model, x)

    y = called(whole, forward, x)
    assert_close(jnp.concatenate(list(called(sharded, mapped, shards)), axis), y, 1e-5)
    assert_close(numbers(sharded), numbers(whole), 1e-5)


@stateful
@pytest.mark.skipif(not hasattr(nnx, "with_vars"), reason="this Flax has no such references")
def test_array_references(name: str) -> None:
    """A compiled call updates variables that are references in place, also under `jax.grad`."""
    with nnx.var_defaults(ref=True):
        model = model_of(name)
    plain = model_of(name)
    y = jax.jit(forward)(model, X)
    assert_close(y, called(plain, forward, X), 1e-5)
    assert_close(numbers(model), numbers(plain), 1e-5)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    values = nnx.with_vars(params, ref=False)
    with nnx.var_defaults(ref=True):
        theirs = nnx.Sequential(
            nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(0))
        )
    if not differentiates(theirs):
        pytest.skip("this Flax cannot differentiate its own batch norm after a layer so")
    grads = jax.grad(lambda p: loss_of(nnx.merge(graph, p, rest), X))(values)
    expected = called(plain, gradients, X)[1]
    assert_close(flat(grads), flat(expected), 1e-5)
    assert_close(numbers(model), numbers(plain), 1e-5)


def differentiates(model: Any) -> bool:
    """Whether `jax.grad` supports a model with statistics in references."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    try:
        jax.grad(lambda p: nnx.merge(graph, p, rest)(X).sum())(nnx.with_vars(params, ref=False))
    except Exception as error:
        if "non-differentiated array reference" not in str(error):
            raise
        return False
    return True
