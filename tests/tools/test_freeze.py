"""`freeze`, `unfreeze` and the masks: a frozen layer never changes."""

import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.tools.models import (
    IMAGES,
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
    resnet20,
    sharded,
)

MADE = {
    "Linen": lambda: linen(MLP(), ROWS),
    "NNX": lambda: nnx_model(NnxMLP(jnx.BatchNorm)),
}
OUR_TWO = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def frozen(subject: Subject, where: Any = None, **options: Any) -> Subject:
    """The subject with frozen layers."""
    return subject.like(tools.freeze(subject.model, where, variables=subject.variables, **options))


def gradients(subject: Subject) -> dict[str, float]:
    """The largest gradient of each parameter in training, by the end of its path."""

    def loss(y: Any) -> Any:
        return (y * jnp.arange(y.size, dtype=y.dtype).reshape(y.shape) ** 0.5).sum()

    if isinstance(subject.model, nnx.Module):
        model = nnx.clone(subject.model)
        grads: Any = nnx.grad(lambda m: loss(subject.run(m, subject.x, True)))(model)
        flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(grads)}
    else:

        def of_params(params: Any) -> Any:
            return loss(subject.like({**subject.variables, "params": params}).output(train=True))

        grads = jax.grad(of_params)(subject.variables["params"])
        leaves = jax.tree_util.tree_leaves_with_path(grads)
        flat = {tuple(key.key for key in path): leaf for path, leaf in leaves}
    return {"/".join(map(str, path)): float(np.abs(leaf).max()) for path, leaf in flat.items()}


@pytest.mark.parametrize("name", [n for n in SUBJECTS if n not in ("Flax's reused", "NNX, itself")])
def test_training_is_evaluation(name: str) -> None:
    """A frozen model updates nothing in training; the given model still does."""
    subject = SUBJECTS[name]()
    y, after = frozen(subject).step(train=True)
    assert_same(after, subject)
    np.testing.assert_allclose(y, subject.output(), rtol=1e-6, atol=1e-6)
    _, moved = subject.like(tools.unfreeze(frozen(subject).model)).step(train=True)
    assert all((a != subject.stats[path]).any() for path, a in moved.stats.items())


def test_nineteen_norms() -> None:
    """In ResNet-20, a pattern freezes some norms; the others are updated as before."""
    subject = resnet20()
    _, after = frozen(subject, "NormalizedConv_1?/*").step(train=True)
    same = {path for path, a in after.stats.items() if (a == subject.stats[path]).all()}
    assert same == {path for path in subject.stats if re.match(r".*Conv_1\d/", path)}
    assert len(same) == 18


@pytest.mark.parametrize("name", ["reused", "Flax's itself", "MLP", "NNX, shared", "NNX, Flax's"])
@pytest.mark.parametrize("affine", [False, True])
def test_gradients_of_scale_and_bias(name: str, affine: bool) -> None:
    """Gradients are zero if scale and bias are frozen too; all other gradients are nonzero."""
    found = gradients(frozen(SUBJECTS[name](), affine=affine))
    for path, gradient in found.items():
        of_norm = path.split("/")[-2:-1] not in (["Dense_0"], ["Dense_1"], ["dense"], ["last"])
        of_norm = of_norm and "conv" not in path and "stem" not in path
        assert (gradient == 0) == (affine and of_norm), path


@OUR_TWO
def test_gradients_with_frozen_statistics(make: Callable[[], Subject]) -> None:
    """Without freezing scale and bias, gradients match evaluation."""
    subject = make()
    want = gradients(
        subject._replace(model=tools.freeze(subject.model, variables=subject.variables))
    )
    evaluating = subject.like(tools.freeze(subject.model, "first", variables=subject.variables))
    both = gradients(frozen(evaluating, "second"))
    assert want == both


class Joined(nn.Module):
    """A model whose norm gets more than x."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Adds x to its norm."""
        norm = jnl.BatchNorm(activation="relu")
        return norm(x, not train, mask=jnp.isfinite(x), residual=jnp.nan_to_num(x))


class NnxJoined(nnx.Module):
    """The same in NNX."""

    def __init__(self) -> None:
        """Creates the norm."""
        self.norm = jnx.BatchNorm(4, activation="relu", rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Adds x to its norm."""
        return self.norm(x, not train, mask=jnp.isfinite(x), residual=jnp.nan_to_num(x))


@pytest.mark.parametrize("system", ["linen", "nnx"])
def test_a_frozen_norm_gets_all_arguments(system: str) -> None:
    """The mask and the residual reach the frozen norm, by position or by name."""
    x = (
        jnp.asarray(np.random.default_rng(0).normal(2, 3, (6, 4)), jnp.float32)
        .at[2, 1]
        .set(jnp.nan)
    )
    if system == "linen":
        model = Joined()
        variables = model.init(KEY, x, True)
        frozen = tools.freeze(model, variables=variables)
        call, frozen_call = partial(model.apply, variables), partial(frozen.apply, variables)
    else:
        call = NnxJoined()
        frozen_call = tools.freeze(call)
    np.testing.assert_array_equal(frozen_call(x, True), call(x, False))

    def loss(x: jax.Array, call: Any, train: bool) -> Any:
        return call(x, train).sum()

    gradients = jax.grad(loss)(x, frozen_call, True), jax.grad(loss)(x, call, False)
    assert jnp.isfinite(gradients[0]).all()
    np.testing.assert_array_equal(*gradients)


@OUR_TWO
def test_freezing_again(make: Callable[[], Subject]) -> None:
    """Freezing again adds layers and removes none; unfreezing removes all at once."""
    subject = make()
    first = frozen(subject, "first", affine=True)
    _, after = first.step(train=True)
    moved = {path for path, a in after.stats.items() if (a != subject.stats[path]).any()}
    assert {path.split("/")[-2] for path in moved} == {"second"}
    both = frozen(first)
    assert_same(both.step(train=True)[1], subject)
    by_name = {"/".join(path.split("/")[-2:]): g for path, g in gradients(both).items()}
    assert by_name["first/scale"] == by_name["first/bias"] == 0 < by_name["second/scale"]
    again = subject.like(tools.unfreeze(both.model))
    assert type(again.model) is type(subject.model)
    _, want = subject.step(train=True)
    assert_same(again.step(train=True)[1], want)


def test_equal_freezes_are_equal() -> None:
    """Equal freezes are equal, so jit with the module as a static argument traces once."""
    subject, traces = linen(MLP(), ROWS), []

    @partial(jax.jit, static_argnums=0)
    def apply(module: Any, variables: Any) -> Any:
        traces.append(module)
        return module.apply(variables, ROWS, True, mutable=["batch_stats"])

    one, two = frozen(subject, "first").model, frozen(subject, "first").model
    assert one == two and hash(one) == hash(two)
    assert one != subject.model and one != frozen(subject, "second").model
    for module in (one, two):
        apply(module, subject.variables)
    assert len(traces) == 1
    assert tools.unfreeze(one) == subject.model
    graphs = [nnx.graphdef(tools.freeze(NnxMLP(jnx.BatchNorm))) for _ in range(2)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


def test_freezing_again_where_the_model_is_the_layer() -> None:
    """If the model is the layer, scale and bias stay frozen, whichever call froze them."""
    for affine in (True, False):
        subject = linen(jnl.BatchNorm(), ROWS)
        again = frozen(frozen(subject, affine=affine), affine=not affine)
        assert gradients(again) == {"bias": 0, "scale": 0}
        assert_same(again.step(train=True)[1], subject)


@OUR_TWO
def test_pickle_and_copies(make: Callable[[], Subject]) -> None:
    """A frozen model can be pickled and cloned."""
    subject = frozen(frozen(make(), "first", affine=True), "second")
    try:
        pickled = pickle.dumps(subject.model)
    except TypeError as error:  # before jax 0.10
        if "PRNGKeyArray" in str(error):
            pytest.skip("this jax cannot pickle the keys of a model")
        raise
    again = subject.like(pickle.loads(pickled))
    if isinstance(subject.model, nn.Module):
        assert again.model == subject.model == subject.model.clone()
    np.testing.assert_array_equal(again.output(train=True), subject.output(train=True))
    assert gradients(again) == gradients(subject)


@pytest.mark.parametrize("mode", ["train", "eval", "view"])
def test_modes_of_nnx(mode: str) -> None:
    """train() and views affect the result of unfreeze, but not a frozen layer."""
    model = tools.freeze(jnx.BatchNorm(5, rngs=nnx.Rngs(0)))
    if mode == "view":
        model = nnx.view(model, use_running_average=False)
    else:
        getattr(model, mode)()
    y = model(jnp.asarray(ROWS), use_running_average=False)
    np.testing.assert_allclose(y, ROWS / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert isinstance(model, jnx.BatchNorm)
    assert tools.unfreeze(model).use_running_average == (mode == "eval")


@OUR_TWO
def test_the_frozen_model_has_arrays_of_its_own(make: Callable[[], Subject]) -> None:
    """Training a frozen model does not change the given one, and shared layers stay shared."""
    subject = make()
    if subject.variables is None:
        model = tools.freeze(subject.model)
        model.dense.bias[...] += 1
        assert (model.dense.bias[...] != subject.model.dense.bias[...]).all()
        shared = tools.freeze(NnxMLP(jnx.BatchNorm, shared=True))
        assert shared.first is shared.second
        thawed = tools.unfreeze(shared)
        assert thawed.first is thawed.second
    else:
        assert subject.model == MLP()


@pytest.mark.parametrize("affine", [False, True])
@OUR_TWO
def test_untracked_norms_stay_as_they_are(make: Callable[[], Subject], affine: bool) -> None:
    """Untracked norms have no statistics for evaluation, so they keep using their batch."""
    untracked: Any = {"Linen": jnl.BatchNorm, "NNX": jnx.BatchNorm}
    system = "NNX" if make().variables is None else "Linen"
    untracked = partial(untracked[system], track_running_stats=False)
    subject = nnx_model(Pair(untracked)) if system == "NNX" else linen(LinenPair(untracked), ROWS)
    y, after = frozen(subject, affine=affine).step(train=True)
    np.testing.assert_allclose(y, subject.output(), rtol=1e-6, atol=1e-6)
    assert_same(after, subject)


class LinenPair(nn.Module):
    """An untracked norm before a tracked one."""

    untracked: Any

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Applies the norms in sequence."""
        x = self.untracked()(x, use_running_average=not train)
        return jnl.BatchNorm(not train, name="kept")(x)


class Pair(nnx.Module):
    """The same in NNX."""

    def __init__(self, untracked: Any) -> None:
        self.untracked = untracked(5, rngs=nnx.Rngs(0))
        self.kept = jnx.BatchNorm(5, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, train: bool) -> Any:
        """Applies the norms in sequence."""
        return self.kept(self.untracked(x), use_running_average=not train)


def test_on_many_devices() -> None:
    """Freezing works within pmap, vmap and shard_map with an axis name, and for sharded batches."""
    subject = linen(MLP(partial(jnl.BatchNorm, axis_name="devices")), ROWS)
    model, variables = frozen(subject).model, subject.variables
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    mesh = Mesh(np.asarray(jax.devices()), ("devices",), axis_types=(AxisType.Auto,))
    parts, whole = PartitionSpec("devices"), PartitionSpec()
    spread = jax.shard_map(apply, mesh=mesh, in_specs=(whole, parts), out_specs=(parts, whole))
    stacked = ROWS.reshape(8, 2, 5)
    runs = [
        jax.pmap(apply, "devices", in_axes=(None, 0))(variables, stacked),
        jax.vmap(apply, (None, 0), axis_name="devices")(variables, stacked),
        jax.jit(spread)(variables, ROWS),
        jax.jit(apply)(variables, sharded(ROWS)),
    ]
    want = subject.output()
    for y, updated in runs:
        np.testing.assert_allclose(y.reshape(16, 2), want, rtol=1e-5, atol=1e-6)
        for a, b in zip(
            jax.tree.leaves(updated), jax.tree.leaves(variables["batch_stats"]), strict=True
        ):
            np.testing.assert_array_equal(a, np.broadcast_to(b, a.shape))


def test_under_transforms() -> None:
    """Freezing works in a scan of rematerialized layers, scale and bias included."""
    subject = linen(Stacked(nn.BatchNorm), ROWS)
    found = frozen(subject, affine=True)
    y, after = found.step(train=True)
    assert_same(after, subject)
    np.testing.assert_allclose(y, subject.output(), rtol=1e-5, atol=1e-5)
    zero = {path.split("/")[-2] for path, g in gradients(found).items() if g == 0}
    assert zero == {"bn"}


# --- optimizers ----------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
}


@pytest.mark.usefixtures("users_promotion")
@pytest.mark.parametrize("way", ["masked", "partition"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@OUR_TWO
def test_no_optimizer_moves_them(make: Callable[[], Subject], optimizer: str, way: str) -> None:
    """Neither weight decay nor old momentum changes frozen layers; everything else changes."""
    subject = make()
    params: Any = (
        nnx.state(subject.model, nnx.Param)
        if subject.variables is None
        else subject.variables["params"]
    )
    tx = OPTIMIZERS[optimizer]()
    if way == "masked":
        tx = optax.chain(tx, optax.masked(optax.set_to_zero(), tools.norm_mask))
    else:
        tx = optax.partition({True: optax.set_to_zero(), False: tx}, tools.norm_mask)

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    before, state = params, tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        params, state = step(params, state, grads)
    of_norms = jax.tree.leaves(tools.norm_mask(params))
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(params), of_norms, strict=True)
    for old, new, of_norm in pairs:
        assert (old == new).all() == of_norm
    assert sum(of_norms) == 4


def test_masks_of_every_kind_of_layer() -> None:
    """Norms are recognized by name: a bias next to a kernel or an embedding is not a norm's."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Embed(7, 4)(x)
            x = nn.DenseGeneral((2, 2), name="heads")(x)[..., 0]
            x = nn.LayerNorm()(jnl.GroupNorm(2)(x))
            x = nn.RMSNorm()(jnl.BatchNorm(not train)(x))
            x = jnl.WeightNorm(nn.Dense(3, name="wrapped"))(x)
            return jnl.SpectralNorm(nn.Dense(3))(x, update_stats=train)

    shapes = jax.eval_shape(
        lambda: Model().init({"params": KEY}, jnp.ones((2, 3), jnp.int32), True)
    )
    params = shapes["params"]
    names = {"BatchNorm_0", "GroupNorm_0", "LayerNorm_0", "RMSNorm_0"}
    leaves = jax.tree_util.tree_leaves_with_path(tools.norm_mask(params))
    found = {"/".join(k.key for k in path) for path, of_norm in leaves if of_norm}
    expected = {f"{n}/{p}" for n in names for p in ("scale", "bias")} - {"RMSNorm_0/bias"}
    assert {path for path in found if "kernel" not in path} == expected
    decayed = jax.tree_util.tree_leaves_with_path(tools.decay_mask(params))
    assert {path[-1].key for path, of_it in decayed if of_it} == {"kernel", "embedding"}
    assert jax.tree.structure(tools.norm_mask(params)) == jax.tree.structure(params)


def test_where_of_a_mask() -> None:
    """Masks accept a pattern or a function of the layer's path, and a model that is a norm."""
    subject = linen(MLP(), ROWS)
    for where in ("f*", lambda path: path == "first"):
        mask = tools.norm_mask(subject.variables["params"], where)
        assert [all(layer.values()) for layer in mask.values()] == [
            name == "first" for name in mask
        ]
    of_itself: Any = linen(nn.BatchNorm(), ROWS).variables["params"]
    assert tools.norm_mask(of_itself) == {"scale": True, "bias": True}
    assert tools.decay_mask(of_itself) == {"scale": False, "bias": False}
    with pytest.raises(
        ValueError, match=r"at least one norm .* got where='frist', .* first, second"
    ):
        tools.norm_mask(subject.variables["params"], "frist")


def test_averages_leave_them() -> None:
    """The moving average of a frozen layer is the layer."""
    subject = frozen(linen(MLP(), ROWS))
    _, after = subject.step(train=True)
    average = subject.like(tools.average(subject.variables, after.variables, 0.9))
    for path, array in subject.stats.items():
        np.testing.assert_array_equal(average.stats[path], array)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: tools.freeze(s.model, "frist", variables=s.variables),
            "the model has: first, second",
        ),
        (
            lambda s: tools.freeze(s.model, variables={"params": s.variables["params"]}),
            "without any",
        ),
        (lambda s: tools.freeze(s.model), "got NoneType"),
        (lambda s: tools.freeze(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), "without any"),
        (lambda s: tools.freeze(s.model.apply, variables=s.variables), "got method"),
        (lambda s: tools.unfreeze(s.variables), "got dict"),
    ],
    ids=["where", "no statistics", "no variables", "no norm", "apply", "variables"],
)
def test_what_cannot_be_frozen(call: Any, message: str) -> None:
    """The error for a model that cannot be frozen says what was given."""
    with pytest.raises(ValueError, match=message):
        call(linen(MLP(), ROWS))


def test_images_of_a_frozen_stem() -> None:
    """A model with layers from ``setup`` and other public methods can be frozen."""

    class Model(nn.Module):
        def setup(self) -> None:
            self.bn = jnl.BatchNorm(use_running_average=False)

        def __call__(self, x: Any, train: bool) -> Any:
            return self.features(x).mean((1, 2))

        def features(self, x: Any) -> Any:
            return self.bn(x)

    subject = linen(Model(), IMAGES)
    model = frozen(subject).model
    features, updated = model.apply(
        subject.variables, IMAGES, method="features", mutable=["batch_stats"]
    )
    mean, var = (subject.stats[f"batch_stats/bn/{name}"] for name in ("mean", "var"))
    scale, bias = (subject.arrays[f"params/bn/{name}"] for name in ("scale", "bias"))
    want = (IMAGES - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(features, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(updated["batch_stats"]["bn"]["mean"], mean)
