"""Every norm with running statistics (ours, Flax's, a user's) in every tool: supported or refused by name."""

import inspect
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.oracle import assert_close
from tests.selecting import thorough_but

X = np.random.default_rng(0).normal(2, 3, (8, 3, 2, 4)).astype(np.float32)
BATCHES = [X[:6], 5 * X[6:] + 1]
KEY = jax.random.key(0)


# --- the norms ------------------------------------------------------------------------------------


class SilentLinen(nn.Module):
    """A user's norm that does not say how it keeps running statistics."""

    use_running_average: bool | None = None
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        """Batch norm without options."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, 4)
        var = self.variable("batch_stats", "var", jnp.ones, 4)
        stats = jn.RunningStats(mean.value, var.value)
        if nn.merge_param("flag", self.use_running_average, use_running_average):
            return jn.batch_norm_inference(x, stats, epsilon=0.1)
        y, updated = jn.batch_norm(x, stats, epsilon=0.1, momentum=self.momentum)
        if not self.is_initializing():
            mean.value, var.value = updated.mean, updated.var
        return y


class SilentNnx(nnx.Module):
    """A user's NNX norm that does not say how it keeps running statistics."""

    def __init__(self) -> None:
        self.mean, self.var = nnx.BatchStat(jnp.zeros(4)), nnx.BatchStat(jnp.ones(4))
        self.momentum, self.use_running_average = 0.9, False

    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        """Batch norm without options."""
        stats = jn.RunningStats(self.mean[...], self.var[...])
        if self.use_running_average if use_running_average is None else use_running_average:
            return jn.batch_norm_inference(x, stats, epsilon=0.1)
        y, updated = jn.batch_norm(x, stats, epsilon=0.1, momentum=self.momentum)
        self.mean[...], self.var[...] = updated.mean, updated.var
        return y


def _says(self: Any) -> tools.RunningNorm:
    return tools.RunningNorm(axis=-1, epsilon=0.1, momentum=self.momentum)


class OwnLinen(SilentLinen):
    """A user's norm that says it."""

    running_norm = nn.nowrap(_says)


class OwnNnx(SilentNnx):
    """A user's NNX norm that says it."""

    running_norm = _says


class FullLinen(OwnLinen):
    """A user's norm with one more array in ``batch_stats``, and a layer that is named like a parameter."""

    running_norm = nn.nowrap(_says)

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        """Batch norm and a dense layer."""
        steps = self.variable("batch_stats", "steps", jnp.zeros, ())
        y = nn.Dense(4, name="scale")(super().__call__(x, use_running_average))
        if not (self.is_initializing() or use_running_average or self.use_running_average):
            steps.value += 1
        return y


class FullNnx(OwnNnx):
    """The same in NNX."""

    running_norm = _says

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.scale = nnx.BatchStat(jnp.zeros(())), nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, use_running_average: bool | None = None) -> Any:
        """Batch norm and a dense layer."""
        y = self.scale(super().__call__(x, use_running_average))
        if not (self.use_running_average if use_running_average is None else use_running_average):
            self.steps[...] += 1
        return y


OPTIONS: dict[str, dict[str, Any]] = {
    "ConditionalBatchNorm": {"num_classes": 3},
    "DomainBatchNorm": {"num_domains": 2},
    "GhostBatchNorm": {"virtual_batch_size": 2},
    "InstanceNorm": {"track_running_stats": True},
    "SpadeBatchNorm": {"map_channels": 4, "hidden": 2},
}
AFTER: dict[str, Callable[[Any], Any]] = {
    "ConditionalBatchNorm": lambda x: jnp.arange(len(x)) % 3,
    "DomainBatchNorm": lambda x: 1,
    "SpadeBatchNorm": lambda x: x,
}
"""What conditional norms take after x."""
OURS = sorted(name for name, kind in vars(jnl).items() if hasattr(kind, "running_norm"))
CLASSES: dict[str, Any] = {
    **{f"linen {name}": getattr(jnl, name) for name in OURS},
    **{f"nnx {name}": getattr(jnx, name) for name in OURS},
    "linen Flax": nn.BatchNorm,
    "nnx Flax": nnx.BatchNorm,
    "linen own": OwnLinen,
    "nnx own": OwnNnx,
    "linen full": FullLinen,
    "nnx full": FullNnx,
}
NOT_OF_BATCH = {"DomainBatchNorm", "InputNorm", "InstanceNorm", "IterativeWhitening"}
NOT_AVERAGED = {"BatchRenorm"}
UNCHANGED = {"FrozenBatchNorm"}
SILENT: dict[str, Any] = {"linen silent": SilentLinen, "nnx silent": SilentNnx}
# In `make test`, NNX has those whose layer or statistics are of a kind of their own.
BRIEFLY = [n for n in CLASSES if n.startswith("linen")] + [
    f"nnx {name}"
    for name in ("BatchNorm", "ConditionalBatchNorm", "DomainBatchNorm", "Flax", "own", "full")
]
over_classes = pytest.mark.parametrize("name", thorough_but(CLASSES, *BRIEFLY))


def kind(name: str) -> str:
    """The name of the class."""
    return (CLASSES | SILENT)[name].__name__


# --- models with one of them ----------------------------------------------------------------------


class LinenModel(nn.Module):
    """The norm, then means over the image."""

    norm: Any
    after: Any = None
    train: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Returns four numbers for each example."""
        more = () if self.after is None else (self.after(x),)
        layer: Any = self.norm(name="norm")
        return layer(x, *more, use_running_average=not self.train).mean((1, 2))


class NnxModel(nnx.Module):
    """The norm, then means over the image."""

    def __init__(self, norm: Any, after: Any, train: bool = True) -> None:
        self.norm, self.after, self.is_training = norm, after, train

    def __call__(self, x: Any) -> Any:
        """Returns four numbers for each example."""
        more = () if self.after is None else (self.after(x),)
        return self.norm(x, *more, use_running_average=not self.is_training).mean((1, 2))


def model_of(name: str, train: bool = True) -> tuple[Any, dict[str, Any]]:
    """A model with the norm, with statistics unlike those of the data, and arguments for the tools."""
    constructor, options = (CLASSES | SILENT)[name], OPTIONS.get(kind(name), {})
    after = AFTER.get(kind(name))
    if issubclass(constructor, nn.Module):
        model = LinenModel(lambda name: constructor(**options, name=name), after, train)
        variables = dict(LinenModel(model.norm, after, True).init(KEY, X))
        moved = jax.tree.map(_moved, variables.get("batch_stats", {}))
        return model, {"variables": {**variables, "batch_stats": moved}}
    if not issubclass(constructor, SilentNnx):
        options = {"num_features": 4, "rngs": nnx.Rngs(0), **options}
    model = NnxModel(constructor(**options), after, train)
    nnx.update(model, jax.tree.map(_moved, nnx.state(model, nnx.BatchStat)))
    return model, {}


def _moved(leaf: Any) -> Any:
    return leaf + jnp.asarray(0.5, leaf.dtype) if leaf.ndim else leaf


def ran(model: Any, variables: Any = None) -> tuple[Any, Any]:
    """The output and the state afterwards."""
    if isinstance(model, nn.Module):
        y, updated = model.apply(variables, X, mutable=["batch_stats"])
        return y, {**variables, **updated}.get("batch_stats")
    model = nnx.clone(model)
    return model(X), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def stats_of(model: Any, variables: Any = None) -> Any:
    """The mean and the variance of the norm."""
    if variables is not None:
        return variables["batch_stats"]["norm"]
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))["norm"]


def by_path(of: Any) -> dict[str, Any]:
    """The running statistics of variables, of an NNX model, or of what `accumulate` updates."""
    of = nnx.state(of, nnx.BatchStat) if isinstance(of, nnx.Module) else of
    tree = of["batch_stats"] if isinstance(of, dict) else nnx.to_pure_dict(of)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


# --- the tools ------------------------------------------------------------------------------------


def test_all_are_here() -> None:
    """Linen and NNX have the same norms with running statistics."""
    assert [
        name for name, kind in sorted(vars(jnx).items()) if hasattr(kind, "running_norm")
    ] == OURS
    assert set(OURS) > NOT_OF_BATCH | NOT_AVERAGED | UNCHANGED


@pytest.mark.parametrize("system", ["linen", "nnx"])
@pytest.mark.parametrize("name", sorted(set(OURS) - UNCHANGED))
def test_what_a_layer_says_are_its_fields(name: str, system: str) -> None:
    """All options are told, at values other than their defaults."""
    constructor, options = CLASSES[f"{system} {name}"], OPTIONS.get(name, {})
    told = {"axis": 1, "feature_axes": 1, "epsilon": 0.3, "momentum": 0.25, "unbiased": True}
    taken = inspect.signature(constructor.__init__).parameters
    if system == "nnx":
        options = {"num_features": 4, "rngs": nnx.Rngs(0), **options}
    layer = constructor(**options, **{n: value for n, value in told.items() if n in taken})
    assert layer.running_norm() == tools.RunningNorm(
        axis=1,
        epsilon=0.3 if "epsilon" in taken else 0.0,
        momentum=0.25 if "momentum" in taken else None,
        unbiased="unbiased" in taken,
        of_batch=name not in NOT_OF_BATCH,
        averaged=name not in NOT_AVERAGED,
    )


def test_layers_without_running_statistics_say_so() -> None:
    """They keep nothing that the tools could change."""
    for system in (jnl, jnx):
        more: Any = {} if system is jnl else {"num_features": 4, "rngs": nnx.Rngs(0)}
        for kind in (system.BatchNorm, system.InstanceNorm):
            assert kind(**more, track_running_stats=False).running_norm() is None
        assert system.FrozenBatchNorm(**more).running_norm() is None
        assert system.EvoNormB1(**more, nonlinearity=False).running_norm() is None


@over_classes
def test_freeze(name: str) -> None:
    """A frozen model gives the output of evaluation in training, and updates nothing."""
    model, given = model_of(name)
    y, stats = ran(tools.freeze(model, **given), **given)
    evaluated, unchanged = ran(model_of(name, train=False)[0], **given)
    np.testing.assert_array_equal(y, evaluated)
    chex.assert_trees_all_equal(stats, unchanged)
    if kind(name) not in UNCHANGED:
        assert not np.allclose(ran(model, **given)[0], y, rtol=1e-3)


def used(tool: str, model: Any, given: dict[str, Any], **options: Any) -> Any:
    """Calls a tool on a model, and the model that `freeze` and `swap` return."""
    if tool == "accumulate":
        return tools.accumulate(lambda m, x: m(x).sum(), model, X, micro_batches=2, **given)
    if tool == "freeze":
        return ran(tools.freeze(model, **given, **options), **given)
    if tool == "swap":
        swapped = tools.swap(model, "layer", **given, **options)
        return ran(*swapped) if given else ran(swapped)
    batches = BATCHES if tool == "recalibrate" else X
    return getattr(tools, tool)(model, batches, **given, **options)


def refusal(name: str, tool: str) -> str:
    """The message of a tool's refusal."""
    model, given = model_of(name)
    with pytest.raises(ValueError, match=kind(name)) as error:
        used(tool, model, given)
    return str(error.value)


@over_classes
def test_recalibrate(name: str) -> None:
    """Mean and variance are those of all values, or the norm is refused."""
    if kind(name) in NOT_OF_BATCH:
        assert "tools.recalibrate supports" in refusal(name, "recalibrate")
    elif kind(name) not in UNCHANGED:
        model, given = model_of(name)
        done = tools.recalibrate(model, BATCHES, **given)
        found = stats_of(model, done) if given else stats_of(done)
        rows = np.concatenate([np.float64(batch).reshape(-1, 4) for batch in BATCHES])
        assert_close(found["mean"], rows.mean(0), 1e-6)
        assert_close(found["var"], rows.var(0), 1e-6)


@over_classes
def test_examine(name: str) -> None:
    """The moments are those of the batch, or the norm is refused."""
    if kind(name) in NOT_OF_BATCH:
        assert "tools.examine supports" in refusal(name, "examine")
    elif kind(name) not in UNCHANGED:
        model, given = model_of(name)
        examination = tools.examine(model, X, **given)
        rows = np.float64(X).reshape(-1, 4)
        assert_close(examination.batch["norm"].mean, rows.mean(0), 1e-6)
        assert_close(examination.batch["norm"].var, rows.var(0), 1e-6)
        assert examination.layers["norm"].dead == 0


@over_classes
def test_accumulate(name: str) -> None:
    """The statistics after micro-batches are those of a step on the whole batch, or the norm is refused."""
    if kind(name) in NOT_OF_BATCH | NOT_AVERAGED:
        assert "tools.accumulate supports" in refusal(name, "accumulate")
    elif kind(name) not in UNCHANGED:
        model, given = model_of(name)
        step = tools.accumulate(lambda m, x: m(x).sum(), model, X, micro_batches=2, **given)
        updated = step.updated["batch_stats"] if given else nnx.to_pure_dict(step.updated)
        _, expected = ran(model, **given)
        for statistic in ("mean", "var"):
            assert_close(updated["norm"][statistic], expected["norm"][statistic], 1e-6)


@over_classes
def test_fold_and_swap(name: str) -> None:
    """Other norms than batch norm are refused, and stay if they are excluded."""
    if isinstance(CLASSES[name], type) and issubclass(
        CLASSES[name], (nn.BatchNorm, nnx.BatchNorm, jnl.BatchNorm, jnx.BatchNorm)
    ):
        return
    assert "tools.swap supports batch norms" in refusal(name, "swap")
    if kind(name) not in UNCHANGED:
        assert f"it is of class {kind(name)}, and only BatchNorm folds" in refusal(name, "fold")


class ByName(nn.Module):
    """A convolution and a batch norm whose inputs are given by name or by position."""

    norm: Any
    named: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Returns four numbers for each example."""
        conv, norm = nn.Conv(4, (1, 1), name="conv"), self.norm(True, name="norm")
        y = norm(x=conv(inputs=x)) if self.named else norm(conv(x))
        return y.mean((1, 2))


@pytest.mark.sampled
@pytest.mark.parametrize("tool", ["freeze", "recalibrate", "examine", "accumulate", "fold", "swap"])
@pytest.mark.parametrize("norm", [nn.BatchNorm, jnl.BatchNorm])
def test_x_may_be_given_by_name(norm: Any, tool: str) -> None:
    """The result does not depend on how layers are called."""
    given = {"variables": ByName(norm).init(KEY, X)}
    by_name, by_position = (used(tool, ByName(norm, named), given) for named in (True, False))
    if tool == "fold":
        assert by_name.pairs == by_position.pairs == {"norm": "conv"}
        by_name, by_position = by_name.variables, by_position.variables
    chex.assert_trees_all_equal(by_name, by_position)


def test_norms_without_running_statistics_stay() -> None:
    """Fold and swap change the batch norms of a model whose other norms keep nothing that moves."""
    layers = nn.Conv(4, (1, 1)), jnl.BatchNorm(True), jnl.InstanceNorm(), jnl.LayerNorm()
    model = nn.Sequential([*layers, jnl.FrozenBatchNorm()])
    variables = model.init(KEY, X)
    assert tools.fold(model, X, variables=variables).pairs == {"layers_1": "layers_0"}
    swapped, its_variables = tools.swap(model, "layer", variables=variables, where="layers_1")
    y, _ = swapped.apply(its_variables, X, mutable=["batch_stats"])
    assert np.isfinite(y).all() and "layers_4" in its_variables["batch_stats"]


def still(system: str) -> tuple[Any, dict[str, Any]]:
    """A model with every kind of norm that keeps nothing which moves, then a batch norm."""
    norms: Any = jnl if system == "linen" else jnx
    more: Any = {} if system == "linen" else {"num_features": 4, "rngs": nnx.Rngs(0)}
    layers = [
        norms.FrozenBatchNorm(**more),
        norms.InstanceNorm(**more),
        norms.BatchNorm(track_running_stats=False, **more),
        norms.EvoNormB1(use_running_average=False, nonlinearity=False, **more),
        norms.BatchNorm(use_running_average=False, momentum=0.0, **more),
    ]
    if system == "linen":
        model = nn.Sequential(layers)
        return model, {"variables": jax.tree.map(_moved, model.init(KEY, X))}
    model = nnx.Sequential(*layers)
    nnx.update(model, jax.tree.map(_moved, nnx.state(model)))
    return model, {}


@pytest.mark.parametrize("tool", ["recalibrate", "examine", "accumulate"])
@pytest.mark.parametrize("system", ["linen", "nnx"])
def test_norms_without_running_statistics_are_left_as_they_are(system: str, tool: str) -> None:
    """Tools that estimate statistics do not change them, and do not report about them."""
    model, given = still(system)
    done = used(tool, model, given)
    if tool == "examine":
        assert len(done.layers) == 1
        return
    before, after = (
        by_path(a) for a in (given.get("variables", model), getattr(done, "updated", done))
    )
    moved = {path for path, array in before.items() if not np.allclose(array, after[path])}
    last = "layers_4" if system == "linen" else "layers/4"
    assert moved == {f"{last}/mean", f"{last}/var"}


@pytest.mark.parametrize("tool", ["freeze", "recalibrate", "examine", "accumulate", "swap"])
@pytest.mark.parametrize("name", SILENT)
def test_a_norm_that_says_nothing_is_refused(name: str, tool: str) -> None:
    """Running statistics that no tool knows are an error that names the class, its place and what to do."""
    message = refusal(name, tool)
    assert f"tools.{tool} supports" in message and f"got {kind(name)} at 'norm', but it" in message
    assert tool == "swap" or "running_norm (see tools.RunningNorm)" in message


class Both(nn.Module):
    """A batch norm, then a norm that the tools do not know."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Returns four numbers for each example."""
        x = jnl.BatchNorm(use_running_average=False, name="known")(x)
        return SilentLinen(use_running_average=False, name="silent")(x).mean((1, 2))


@pytest.mark.parametrize("tool", ["freeze", "recalibrate", "examine", "swap"])
def test_excluded_layers_run_as_the_model_says(tool: str) -> None:
    """With where, a model may have layers that the tools do not know."""
    given = {"variables": Both().init(KEY, X)}
    with pytest.raises(ValueError, match="SilentLinen at 'silent'"):
        used(tool, Both(), given)
    done = used(tool, Both(), given, where="known")
    before: Any = given["variables"]["batch_stats"]
    if tool == "examine":
        assert list(done.layers) == ["known"]
        return
    after = done["batch_stats"] if tool == "recalibrate" else done[1]
    trains = tool != "recalibrate"  # that one leaves the state of all other layers as it is
    assert np.allclose(after["silent"]["mean"], before["silent"]["mean"]) != trains
    if tool == "swap":
        assert "known" not in after
    else:
        moved = not np.allclose(after["known"]["mean"], before["known"]["mean"])
        assert moved == (tool == "recalibrate")


class OwnOptions(OwnNnx):
    """A user's NNX norm whose options are given to it, as arrays or as numbers."""

    def __init__(self, epsilon: Any, momentum: Any) -> None:
        self.mean, self.var = nnx.BatchStat(jnp.zeros(4)), nnx.BatchStat(jnp.ones(4))
        self.epsilon, self.momentum, self.use_running_average = epsilon, momentum, False

    def running_norm(self) -> tools.RunningNorm:
        """Tells the tools how the layer keeps running statistics."""
        return tools.RunningNorm(axis=-1, epsilon=self.epsilon, momentum=self.momentum)


@pytest.mark.parametrize("tool", ["recalibrate", "examine", "accumulate"])
def test_options_may_be_arrays(tool: str, caplog: pytest.LogCaptureFixture) -> None:
    """In NNX, they are then a part of the model's state."""
    caplog.set_level("INFO", logger="jaxnorm")
    numbers, arrays = (NnxModel(OwnOptions(f(0.5), f(0.25)), None) for f in (float, jnp.float32))
    want, got = (used(tool, model, {}) for model in (numbers, arrays))
    if tool == "examine":
        assert got.layers == want.layers
        return
    if tool == "recalibrate":
        assert caplog.messages[0] == caplog.messages[1]
    found = by_path(getattr(got, "updated", got))
    for path, array in by_path(getattr(want, "updated", want)).items():
        np.testing.assert_array_equal(found[path], array)


class OfSomethingElse(nn.BatchNorm):
    """A subclass of Flax's that says that its statistics are not the batch's."""

    @nn.nowrap
    def running_norm(self) -> tools.RunningNorm:
        """Says it."""
        return tools.RunningNorm(self.axis, self.epsilon, self.momentum, of_batch=False)


class OfSomethingElseNnx(nnx.BatchNorm):
    """The same in NNX."""

    running_norm = OfSomethingElse.running_norm


def test_a_subclass_of_flax_speaks_for_itself() -> None:
    """What its method says counts, not what is known about Flax's class."""
    x = jnp.ones((4, 2))
    linen = OfSomethingElse(use_running_average=True)
    variables: Any = linen.init(jax.random.key(0), x)
    models: list[tuple[Any, Any]] = [
        (linen, {"variables": variables}),
        (OfSomethingElseNnx(2, rngs=nnx.Rngs(0)), {}),
    ]
    for model, given in models:
        with pytest.raises(ValueError, match="its statistics are not the mean and variance"):
            tools.recalibrate(model, [x], **given)


class MaskSecond(jnl.BatchNorm):
    """A norm that takes its mask as the second argument, and says how it keeps its statistics."""

    running_norm = jnl.BatchNorm.running_norm

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Any, mask: Any = None, use_running_average: bool | None = None
    ) -> Any:
        """Calls batch norm."""
        return super().__call__(x, use_running_average, mask=mask)


class MaskSecondNnx(jnx.BatchNorm):
    """The same in NNX."""

    running_norm = jnx.BatchNorm.running_norm

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Any, mask: Any = None, use_running_average: bool | None = None
    ) -> Any:
        """Calls batch norm."""
        return super().__call__(x, use_running_average=use_running_average, mask=mask)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_mask_by_position(by_name: bool) -> None:
    """Padding stays out of the statistics, however the mask is given."""
    x, mask = jnp.array([[1.0], [3.0], [1e6]]), jnp.array([[True], [True], [False]])

    def run(model: Any, x: Any) -> Any:
        return model(x, mask=mask) if by_name else model(x, mask)

    linen = MaskSecond(use_running_average=True)
    variables = linen.init(jax.random.key(0), x)
    stats = tools.recalibrate(linen, [x], variables=variables, run=run)["batch_stats"]
    assert stats["mean"] == 2
    layer = MaskSecondNnx(1, rngs=nnx.Rngs(0))
    assert tools.recalibrate(layer, [x], run=run).mean[...] == 2
