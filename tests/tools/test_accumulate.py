"""`accumulate` takes one exact step of the running statistics, and the mean of the parts' gradients."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests import oracle
from tests.tools.models import (
    KEY,
    MLP,
    ROWS,
    SUBJECTS,
    NnxMLP,
    Stacked,
    Subject,
    assert_same,
    linen,
    nnx_model,
    sharded,
)

PARTS = 4


def loss_of(subject: Subject) -> Any:
    """A mean over examples."""

    def loss(model: Any, x: Any) -> Any:
        return ((subject.run(model, x, True) - 1) ** 2).mean()

    return loss


def accumulated(subject: Subject, batch: Any = None, **options: Any) -> tools.Accumulated:
    """Accumulates over `PARTS` parts by default."""
    batch = subject.x if batch is None else batch
    options = {"micro_batches": PARTS, **options}
    return tools.accumulate(
        loss_of(subject), subject.model, batch, variables=subject.variables, **options
    )


def after(subject: Subject, a: tools.Accumulated) -> Subject:
    """The subject with the updated statistics."""
    if subject.variables is None:
        model = nnx.clone(subject.model)
        nnx.update(model, a.updated)
        return subject.like(model)
    return subject.like({**subject.variables, **a.updated})


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Gradients by path, in both systems."""
    if isinstance(tree, nnx.State):
        return {"/".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(tree)}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def by_hand(subject: Subject) -> tuple[Any, dict[str, np.ndarray]]:
    """The mean loss and gradients of parts i, i + k, i + 2k, ..."""
    losses, grads = [], []
    for i in range(PARTS):
        x = subject.x[i::PARTS]
        if subject.variables is None:
            value, grad = nnx.value_and_grad(lambda m, x=x: loss_of(subject)(m, x))(
                nnx.clone(subject.model)
            )
        else:

            def of_params(params: Any, x: Any = x) -> Any:
                y, _ = subject.like({**subject.variables, "params": params}).step(x)
                return ((y - 1) ** 2).mean()

            value, grad = jax.value_and_grad(of_params)(subject.variables["params"])
        losses.append(float(value))
        grads.append(flat(grad))
    return np.mean(losses), {path: np.mean([g[path] for g in grads], 0) for path in grads[0]}


@pytest.mark.parametrize("name", ["Flax's itself", "NNX, shared"])
def test_gradients_are_the_mean_of_the_parts(name: str) -> None:
    """Loss and gradients are means over the parts, and the given model does not change."""
    subject = SUBJECTS[name]()
    before = subject.arrays
    a = accumulated(subject)
    loss, grads = by_hand(subject)
    np.testing.assert_allclose(a.loss, loss, rtol=1e-5)
    found = flat(a.grads)
    assert found.keys() == grads.keys()
    for path, gradient in grads.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-3, atol=1e-4)
    for path, array in before.items():
        np.testing.assert_array_equal(subject.arrays[path], array)


@pytest.mark.parametrize(
    ("system", "fields"),
    [
        (jnl, {"momentum": 0.6, "unbiased": True}),
        (jnl, {"momentum": None}),
        (jnl, {"axis": 1}),
        (jnx, {"momentum": jnp.float32(0.6)}),
        (jnx, {"momentum": None, "unbiased": True}),
    ],
    ids=str,
)
def test_statistics_are_those_of_one_step(system: Any, fields: dict[str, Any]) -> None:
    """Statistics match a step on the whole batch in double precision, and counts increase by one."""
    x = np.random.default_rng(3).normal(5, 2, (12, 4, 3)).astype(np.float32)
    if system is jnl:
        subject = linen(jnl.BatchNorm(**fields), x)
    else:
        sizes = x.shape[fields.get("axis", -1)]
        subject = nnx_model(jnx.BatchNorm(sizes, rngs=nnx.Rngs(0), **fields), x)
    old = {path.split("/")[-1]: array for path, array in subject.stats.items()}
    momentum = 0.0 if fields.get("momentum", 0.99) is None else fields.get("momentum", 0.99)
    if "count" in old:
        momentum = float(old["count"][0]) / float(old["count"][0] + 1)
    norm = oracle.BatchNorm(
        feature_axes=fields.get("axis", -1),
        momentum=float(momentum),
        unbiased=fields.get("unbiased", False),
    )
    scale = np.ones_like(old["mean"])
    want = norm.value(oracle.Primals(x, old["mean"], old["var"], scale, scale))
    new = after(subject, accumulated(subject, micro_batches=6)).stats
    for path, array in new.items():
        name = path.split("/")[-1]
        assert array.dtype == subject.stats[path].dtype
        if name == "count":
            np.testing.assert_array_equal(array, old["count"] + 1)
        else:
            np.testing.assert_allclose(array, getattr(want, name), rtol=1e-5)


@pytest.mark.thorough
def test_a_single_part_is_a_step() -> None:
    """With a single part, every layer takes a normal step."""
    subject = SUBJECTS["CNN"]()
    _, once = subject.step()
    new = after(subject, accumulated(subject, micro_batches=1))
    for path, array in once.arrays.items():
        np.testing.assert_allclose(new.arrays[path], array, rtol=1e-5, atol=1e-5)


def as_nnx(subject: Subject) -> Subject:
    """The MLP in NNX, with the same values."""
    model = NnxMLP(partial(jnx.BatchNorm, momentum=0.9))
    layers = {"Dense_0": model.dense, "Dense_1": model.last}
    layers |= {"first": model.first, "second": model.second}
    for collection in subject.variables.values():
        for name, arrays in collection.items():
            for variable, array in arrays.items():
                getattr(layers[name], variable)[...] = array
    return Subject(model, None, subject.x)


def test_linen_and_nnx_agree() -> None:
    """Loss, gradients and statistics agree."""
    linens = linen(MLP(partial(jnl.BatchNorm, momentum=0.9)), ROWS)
    nnxs = as_nnx(linens)
    a, b = accumulated(linens), accumulated(nnxs)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-6)
    names = {"Dense_0": "dense", "Dense_1": "last"}
    theirs = flat(b.grads)
    for path, gradient in flat(a.grads).items():
        layer, variable = path.split("/")
        other = theirs[f"{names.get(layer, layer)}/{variable}"]
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-6)
    stats = after(nnxs, b).stats
    for path, array in after(linens, a).stats.items():
        other = stats[path.removeprefix("batch_stats/")]
        np.testing.assert_allclose(array, other, rtol=1e-6)


def test_under_jit_and_sharded() -> None:
    """Under jit with a sharded batch, results do not change; every part is sharded over the devices."""
    subject = SUBJECTS["MLP"]()
    subject = subject._replace(x=np.concatenate([ROWS, ROWS + 1]))
    want = accumulated(subject)  # not under jit

    @jax.jit
    def step(variables: Any, x: Any) -> Any:
        return accumulated(subject.like(variables), x)

    got = step(subject.variables, sharded(subject.x))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_within_shard_map() -> None:
    """Layers with an axis name share statistics over the devices, and all parts are pooled."""
    subject = linen(MLP(partial(jnl.BatchNorm, axis_name="devices", momentum=0.5)), ROWS)
    plain = linen(MLP(partial(jnl.BatchNorm, momentum=0.5)), ROWS)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("devices",), axis_types=(AxisType.Auto,))

    def updated(variables: Any, x: Any) -> Any:
        return accumulated(subject.like(variables), x, micro_batches=2).updated

    whole, parts = PartitionSpec(), PartitionSpec("devices")
    spread = jax.shard_map(
        updated, mesh=mesh, in_specs=(whole, parts), out_specs=whole, check_vma=False
    )
    got = subject.like({**subject.variables, **jax.jit(spread)(subject.variables, ROWS)})
    _, once = plain.step()
    for name in ("mean", "var"):
        path = f"batch_stats/first/{name}"
        np.testing.assert_allclose(got.stats[path], once.stats[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("system", ["Linen", "NNX"])
def test_every_part_draws_its_own_numbers(system: str) -> None:
    """Dropout differs between parts and is reproducible."""
    same = np.repeat(ROWS[:4], PARTS, 0)  # each part has the same rows
    options: Any = {"has_aux": True}
    if system == "Linen":
        subject = linen(MLP(), same)._replace(model=MLP(dropout=0.5))
        options["rngs"] = {"dropout": KEY}
    else:
        subject = nnx_model(NnxMLP(jnx.BatchNorm, dropout=0.5), same)

    def loss(model: Any, x: Any) -> Any:
        y = subject.run(model, x, True)
        return (y**2).mean(), y

    run = partial(tools.accumulate, loss, subject.model, same, micro_batches=PARTS)
    a = run(variables=subject.variables, **options)
    assert a.aux.shape == (PARTS, 4, 2)
    assert len(np.unique(np.asarray(a.aux)[:, 0, 0])) == PARTS
    if system == "NNX":
        model = nnx.clone(subject.model)
        nnx.update(model, a.updated)
        assert model.dropout.rngs is not None
        assert model.dropout.rngs.count[...] == subject.model.dropout.rngs.count[...] + PARTS  # pyright: ignore[reportOptionalSubscript, reportOptionalOperand]


def test_frozen_layers_do_not_move() -> None:
    """Frozen layers and layers in evaluation mode do not change; all others do."""
    for make in (SUBJECTS["MLP"], SUBJECTS["NNX"]):
        subject = make()
        frozen = subject.like(tools.freeze(subject.model, "first", variables=subject.variables))
        new = after(frozen, accumulated(frozen))
        for path, array in new.stats.items():
            assert (array == subject.stats[path]).all() == ("first" in path)
    evaluating = tools.accumulate(
        lambda m, x: (m(x, False) ** 2).mean(), subject.model, ROWS, micro_batches=2
    )
    assert_same(after(subject, evaluating), subject)


def test_masks_weigh_the_parts() -> None:
    """Masked NaN is not read; statistics cover the unmasked elements."""
    subject = linen(jnl.BatchNorm(momentum=0.5), ROWS)
    mask = np.arange(16)[:, None] < 9
    x = np.where(mask, ROWS, np.nan).astype(np.float32)

    def loss(model: Any, batch: Any) -> Any:
        y = model(batch[0], use_running_average=False, mask=batch[1])
        return jnp.where(batch[1], y, 0.0).sum() / 16

    a = tools.accumulate(
        loss, subject.model, (x, mask), micro_batches=4, variables=subject.variables
    )
    new = after(subject, a).stats
    old = subject.stats
    want = {"mean": ROWS[:9].mean(0), "var": ROWS[:9].var(0)}
    for name, value in want.items():
        path = f"batch_stats/{name}"
        np.testing.assert_allclose(new[path], (old[path] + value) / 2, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(a.grads))


def test_other_state_is_carried_from_part_to_part() -> None:
    """The vectors of spectral norm are updated once per part, as in the loop that this replaces."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = jnl.SpectralNorm(nn.Dense(4))(x, update_stats=train)
            return jnl.BatchNorm(not train, name="bn")(x)

    subject = linen(Model(), ROWS)
    new = after(subject, accumulated(subject))
    step = subject
    for i in range(PARTS):
        _, step = step.step(ROWS[i::PARTS])
    others = [path for path in step.arrays if "/bn/" not in path and "params" not in path]
    assert others
    for path in others:
        assert (step.arrays[path] != subject.arrays[path]).any()
        np.testing.assert_allclose(new.arrays[path], step.arrays[path], rtol=1e-5)


def test_stacked_layers() -> None:
    """Under scan and remat, each layer takes its own step."""
    subject = linen(Stacked(), ROWS)
    _, once = subject.step()
    new = after(subject, accumulated(subject)).stats
    for path, array in once.stats.items():
        np.testing.assert_allclose(new[path][0], array[0], rtol=1e-5)
        assert new[path].shape == array.shape


def test_frozen_dict() -> None:
    """Gradients and updates have the same mapping type as the variables."""
    subject = linen(MLP(), ROWS)
    for variables in (
        freeze(subject.variables),
        {**subject.variables, "batch_stats": freeze(subject.variables["batch_stats"])},
        {**subject.variables, "params": freeze(subject.variables["params"])},
    ):
        a = jax.eval_shape(lambda variables: accumulated(subject.like(variables)), variables)
        for tree, name in ((a.grads, "params"), (a.updated["batch_stats"], "batch_stats")):
            assert jax.tree.structure(tree) == jax.tree.structure(variables[name])


def test_a_loop_of_training() -> None:
    """Training works with `TrainState` and with an NNX optimizer, as in the documentation."""
    subject = linen(MLP(), ROWS)
    state = tools.TrainState.of(subject.model, subject.variables, optax.sgd(0.1))
    model = nnx.clone(SUBJECTS["NNX"]().model)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @jax.jit
    def step(state: Any) -> Any:
        a = accumulated(subject.like(state.variables), micro_batches=2)
        return state.apply_gradients(grads=a.grads, **a.updated), a.loss

    @nnx.jit
    def nnx_step(model: Any, optimizer: Any) -> Any:
        a = accumulated(Subject(model, None, ROWS), micro_batches=2)
        optimizer.update(model, a.grads)
        nnx.update(model, a.updated)
        return a.loss

    losses, of_nnx = [], []
    for _ in range(3):
        state, loss = step(state)
        losses.append(loss)
        of_nnx.append(nnx_step(model, optimizer))
    assert losses[2] < losses[0] and of_nnx[2] < of_nnx[0]
    assert int(state.step) == 3


@pytest.mark.parametrize("number", [0, 3, 32])
def test_parts_that_do_not_divide(number: int) -> None:
    """The error names both numbers."""
    with pytest.raises(ValueError, match=rf"micro_batches={number} and \[16\] examples"):
        accumulated(SUBJECTS["MLP"](), micro_batches=number)


def test_leaves_of_several_lengths() -> None:
    """All leaves must have the same number of examples."""
    with pytest.raises(ValueError, match=r"\[8, 16\] examples"):
        accumulated(SUBJECTS["MLP"](), {"x": ROWS, "y": ROWS[:8]})


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", 1.0), ("float16", 100.0)])
def test_narrow_gradients_are_summed_in_float32(dtype: str, value: float) -> None:
    """In its own dtype, a sum of many parts would stop growing (bfloat16) or overflow (float16)."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            w = self.param("w", nn.initializers.ones, (), dtype)
            y = nn.BatchNorm(use_running_average=False, name="bn")(x)
            return w * value + 0 * y.sum().astype(dtype)

    x = jnp.ones((1024, 1))
    a = tools.accumulate(
        lambda m, x: m(x), Model(), x, micro_batches=1024, variables=Model().init(KEY, x)
    )
    for mean in (a.loss, a.grads["w"]):
        assert mean.dtype == dtype and mean == value
