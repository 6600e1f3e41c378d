"""After `recalibrate`, evaluation matches training on the population."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from examples.models import ResNet20
from jaxnorm import linen as jnl, nnx as jnx, tools
from tests import oracle
from tests.selecting import thorough_but
from tests.tools.models import (
    IMAGES,
    KEY,
    MLP,
    ROWS,
    SUBJECTS,
    Layer,
    NnxMLP,
    Stacked,
    Subject,
    assert_same,
    linen,
    nnx_model,
    sharded,
)

HALVES = [ROWS[:8], ROWS[8:]]
PARTS = [ROWS[:1], ROWS[1:]]


def recalibrated(subject: Subject, batches: Any, **options: Any) -> Subject:
    """The subject with new statistics."""
    options = {"run": subject.evaluate, **options}
    return subject.like(
        tools.recalibrate(subject.model, batches, variables=subject.variables, **options)
    )


def of_itself(x: Any = ROWS, **fields: Any) -> Subject:
    """A single batch norm."""
    return linen(jnl.BatchNorm(**fields), x)


POPULATION = ["CNN", "MLP", "Flax's itself", "NNX", "NNX, Flax's"]


@pytest.mark.parametrize("name", thorough_but(POPULATION, "Flax's itself", "NNX"))
def test_evaluation_is_training_on_the_population(name: str) -> None:
    """Every layer matches over several batches of different sizes, and only statistics change."""
    subject = SUBJECTS[name]()
    before = {path: array.copy() for path, array in subject.arrays.items()}
    cut = 1 if name == "MLP" else 8
    batches = [subject.x[:cut], subject.x[cut:]]
    after = recalibrated(subject, batches, layer_by_layer=True)
    np.testing.assert_allclose(after.output(), subject.output(train=True), atol=1e-5)
    for path, array in before.items():
        np.testing.assert_array_equal(subject.arrays[path], array)
        assert path in subject.stats or np.array_equal(after.arrays[path], array)
        assert after.arrays[path].dtype == array.dtype


class NnxStacked(nnx.Module):
    """Two layers in a scan."""

    def __init__(self) -> None:
        """Creates a stack of layers."""
        self.layers = nnx.vmap(NnxLayer)(nnx.Rngs(0).split(4))

    def __call__(self, x: Any, train: bool) -> Any:
        """Applies the layers in sequence."""

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def apply(layer: Any, x: Any) -> Any:
            return layer(x, train)

        return apply(self.layers, x)


class NnxLayer(nnx.Module):
    """A dense layer, a norm and a relu."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers."""
        self.dense = nnx.Linear(5, 5, rngs=rngs)
        self.norm = jnx.BatchNorm(5, rngs=rngs)

    def __call__(self, x: Any, train: bool) -> Any:
        """Applies the layers."""
        return nnx.relu(self.norm(self.dense(x), use_running_average=not train))


STACKS = {
    "Linen": lambda: linen(Stacked(length=4), ROWS),
    "Linen, Flax's": lambda: linen(Stacked(nn.BatchNorm, length=4), ROWS),
    "NNX": lambda: nnx_model(NnxStacked()),
}


@pytest.mark.parametrize("system", thorough_but(STACKS, "Linen", "NNX"))
def test_layer_by_layer_in_a_loop(system: str) -> None:
    """A stack of layers takes as many passes as it has layers, not as it has paths."""
    subject = STACKS[system]()
    after = recalibrated(subject, HALVES, layer_by_layer=True)
    np.testing.assert_allclose(after.output(), subject.output(train=True), atol=1e-5)


class LinenDropped(nn.Module):
    """Dropout, then a norm: for x = 1, the norm's inputs are 0 or 2."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Applies dropout and the norm."""
        return jnl.BatchNorm(use_running_average=True)(nn.Dropout(0.5, deterministic=False)(x))


class NnxDropped(nnx.Module):
    """The same in NNX."""

    def __init__(self) -> None:
        self.dropout = nnx.Dropout(0.5, deterministic=False, rngs=nnx.Rngs(dropout=1))
        self.norm = jnx.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        """Applies dropout and the norm."""
        return self.norm(self.dropout(x))


@pytest.mark.parametrize("options", [{}, {"method": "update_bn"}, {"layer_by_layer": True}])
@pytest.mark.parametrize("system", ["Linen", "NNX"])
def test_every_batch_draws_its_own_numbers(system: str, options: dict[str, Any]) -> None:
    """Every batch has its own dropout mask, and results are reproducible."""
    batches, arguments = [jnp.ones((1, 6))] * 100, dict(options)
    if system == "Linen":
        model: Any = LinenDropped()
        keys = {"params": KEY, "dropout": KEY}
        arguments |= {"variables": model.init(keys, batches[0]), "rngs": {"dropout": KEY}}
    else:
        model = NnxDropped()
    found: Any = [tools.recalibrate(model, batches, **arguments) for _ in range(2)]
    if system == "Linen":
        (mean, var), again = [tuple(v["batch_stats"]["BatchNorm_0"].values()) for v in found]
    else:
        (mean, var), again = [(m.norm.mean[...], m.norm.var[...]) for m in found]
        chex.assert_trees_all_equal(nnx.state(found[0].dropout), nnx.state(model.dropout))
    chex.assert_trees_all_equal((mean, var), again)
    assert (np.abs(mean - 1) < 0.4).all()  # four standard deviations of a mean of 100 values
    if "method" not in options:  # update_bn averages variances of single values
        np.testing.assert_allclose(var, mean * (2 - mean), rtol=1e-5)  # of values 0 and 2


@pytest.mark.thorough
def test_nineteen_norms_on_one_batch() -> None:
    """In ResNet-20, statistics match those of training without momentum."""
    subject = linen(ResNet20(partial(jnl.BatchNorm, momentum=0.0)), IMAGES)
    after, (_, once) = recalibrated(subject, [IMAGES]), subject.step()
    assert len(after.stats) == 38
    for path, array in once.stats.items():
        np.testing.assert_allclose(after.stats[path], array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["reused", "NNX, shared"])
def test_a_layer_used_twice_pools_its_uses(name: str) -> None:
    """There is one estimate over all inputs of the layer, and `examine` agrees."""
    subject = SUBJECTS[name]()
    inputs: list[Any] = []

    def run(model: Any, x: Any) -> Any:
        if not isinstance(model, nn.Module):
            h = model.dense(x)
            inputs.append(h)
            inputs.append(nnx.relu(model.first(h, use_running_average=False)))
            return inputs[-1]
        x = model.stem(x)
        for _ in range(2):
            inputs.append(model.conv(x))
            x = x + nn.relu(model.bn(inputs[-1], use_running_average=False))
        return x

    if subject.variables is None:
        run(nnx.clone(subject.model), subject.x)
    else:
        nn.apply(run, subject.model, mutable=["batch_stats"])(subject.variables, subject.x)
    values = np.concatenate([np.asarray(a, np.float64) for a in inputs]).reshape(-1, 4)
    after = recalibrated(subject, [subject.x]).stats
    for path, array in after.items():
        want = values.mean(0) if path.endswith("mean") else values.var(0)
        np.testing.assert_allclose(array, want, rtol=1e-4, atol=1e-5)


def first_moments(subject: Subject, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the input of an MLP's first norm, in double precision."""
    kernel, bias = (subject.arrays[f"params/Dense_0/{name}"] for name in ("kernel", "bias"))
    m = oracle.moments(oracle.wide(x) @ oracle.wide(kernel) + bias, 0)
    return m.mean[0], m.var[0]


def test_the_first_layer_in_double_precision() -> None:
    """Many batches far from zero give the statistics of one population."""
    subject = linen(MLP(), ROWS)
    x = np.random.default_rng(2).normal(1e4, 1, (300, 5)).astype(np.float32)
    batches = np.split(x[:297], 27)
    after = recalibrated(of_itself(), [*batches, x[297:]]).stats
    np.testing.assert_allclose(after["batch_stats/mean"], oracle.wide(x).mean(0), rtol=2e-7)
    np.testing.assert_allclose(after["batch_stats/var"], oracle.wide(x).var(0), rtol=3e-4)
    mean, var = first_moments(subject, ROWS)
    after = recalibrated(subject, (half for half in HALVES)).stats
    np.testing.assert_allclose(after["batch_stats/first/mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(after["batch_stats/first/var"], var, rtol=1e-5)


def test_sharded_batches() -> None:
    """Works with jit over a mesh, even if the layer has an unbound axis name."""
    subject = linen(MLP(partial(jnl.BatchNorm, axis_name="devices")), ROWS)
    one = recalibrated(subject, [ROWS])
    many = recalibrated(subject, [sharded(ROWS)])
    for path, array in one.stats.items():
        np.testing.assert_allclose(many.stats[path], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [jnl.BatchNorm, nn.BatchNorm])
def test_update_bn_is_the_average_of_batches(norm: Any) -> None:
    """As in PyTorch, unbiased variances of whole batches are averaged with equal weights."""
    subject = linen(norm(), ROWS)
    parts = [oracle.wide(part) for part in (ROWS[:5], ROWS[5:11], ROWS[11:])]
    after = recalibrated(subject, [p.astype(np.float32) for p in parts], method="update_bn").stats
    want = {"mean": [p.mean(0) for p in parts], "var": [p.var(0, ddof=1) for p in parts]}
    for name, values in want.items():
        np.testing.assert_allclose(after[f"batch_stats/{name}"], np.mean(values, 0), rtol=2e-5)


def test_update_bn_is_that_of_pytorch() -> None:
    """Matches `torch.optim.swa_utils.update_bn` for two norms in sequence."""
    reason = "no PyTorch, or one without all of these arguments"
    torch: Any = pytest.importorskip("torch", minversion="2.13", reason=reason)
    subject = linen(MLP(), ROWS)
    layers = torch.nn
    first, last = layers.Linear(5, 4), layers.Linear(4, 2)
    norms = [layers.BatchNorm1d(4), layers.BatchNorm1d(4)]
    theirs = layers.Sequential(first, norms[0], layers.ReLU(), norms[1], last).double()
    params = subject.variables["params"]

    def tensor(a: Any) -> Any:
        return torch.nn.Parameter(torch.tensor(np.asarray(a, np.float64)))

    first.weight, first.bias = (
        tensor(params["Dense_0"]["kernel"].T),
        tensor(params["Dense_0"]["bias"]),
    )
    norms[0].weight, norms[0].bias = (tensor(params["first"][name]) for name in ("scale", "bias"))
    batches = [ROWS[:5], ROWS[5:11], ROWS[11:]]
    torch.optim.swa_utils.update_bn([torch.tensor(oracle.wide(b)) for b in batches], theirs)
    ours = recalibrated(subject, batches, method="update_bn").stats
    for name, norm in zip(("first", "second"), norms, strict=True):
        for ending, value in (("mean", norm.running_mean), ("var", norm.running_var)):
            got = ours[f"batch_stats/{name}/{ending}"]
            np.testing.assert_allclose(got, value.numpy(), rtol=2e-5, atol=1e-6)


def test_precise_bn_is_that_of_fvcore() -> None:
    """Matches fvcore's population formula: E[x²] - E[x]², with batches weighted by size."""
    after = recalibrated(of_itself(), PARTS, method="precise_bn").stats
    parts = [oracle.wide(part) for part in PARTS]
    sizes = np.array([len(part) for part in parts]) / 16
    mean = sum(n * p.mean(0) for n, p in zip(sizes, parts, strict=True))
    square = sum(n * (p.var(0) + p.mean(0) ** 2) for n, p in zip(sizes, parts, strict=True))
    np.testing.assert_allclose(after["batch_stats/mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(after["batch_stats/var"], square - mean**2, rtol=1e-5)


def test_masks_decide_what_counts() -> None:
    """Padding with NaN is ignored, and a fully masked batch adds nothing."""
    subject = linen(MLP(), ROWS)
    padded = np.concatenate([ROWS, np.full((5, 5), np.nan, np.float32)])
    masks = np.arange(21)[:, None] < 16

    def run(model: Any, batch: Any) -> Any:
        return model(batch[0], False, mask=batch[1])

    none = padded[13:], masks[13:] & False
    got = recalibrated(
        subject, [(padded[:8], masks[:8]), (padded[8:16], masks[8:16]), none], run=run
    )
    want = recalibrated(subject, HALVES)
    for path, array in want.stats.items():
        np.testing.assert_allclose(got.stats[path], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"axis": 1},
        {"momentum": None},
        {"momentum": 1.0},
        {"axis": (1, 2), "use_scale": False, "use_bias": False},
        {"virtual_batch_size": 2},
    ],
    ids=str,
)
def test_options_of_the_layer(fields: dict[str, Any]) -> None:
    """Axes, momenta and virtual batches do not affect the result, and counts do not change."""
    x = np.random.default_rng(0).normal(3, 2, (6, 4, 5)).astype(np.float32)
    subject = of_itself(x, **fields)
    after = recalibrated(subject, [x[:4], x[2:]])
    x = np.concatenate([x[:4], x[2:]])
    reduced = oracle.complement(fields.get("axis", -1), 3)
    np.testing.assert_allclose(after.stats["batch_stats/mean"], x.mean(reduced), rtol=1e-5)
    np.testing.assert_allclose(after.stats["batch_stats/var"], x.var(reduced), rtol=1e-5)
    count = "batch_stats/count"
    assert count not in after.stats or (after.stats[count] == subject.stats[count]).all()


@pytest.mark.usefixtures("users_promotion")
def test_half_precision() -> None:
    """Statistics in bfloat16 keep their dtype, and are accumulated in float32."""
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "force_float32_reductions": False}
    x = np.random.default_rng(2).normal(300, 1, (64, 5)).astype(np.float32)
    subject = of_itself(x, **half)
    after = recalibrated(subject, list(np.split(x, 64))).stats
    oracle.assert_close(after["batch_stats/var"], oracle.wide(x).var(0))
    assert after["batch_stats/mean"].dtype == jnp.bfloat16


def test_a_layer_without_statistics_is_left_alone() -> None:
    """A layer without statistics normalizes with its batch, as always."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = jnl.BatchNorm(track_running_stats=False)(x)
            return jnl.BatchNorm(use_running_average=not train, name="kept")(x)

    subject = linen(Model(), ROWS)
    after = recalibrated(subject, [ROWS])
    assert after.stats.keys() == {"batch_stats/kept/mean", "batch_stats/kept/var"}
    np.testing.assert_allclose(after.output(), subject.output(train=True), atol=1e-5)


class Wrapped(nn.Module):
    """A layer under Linen's transforms."""

    norm: Any

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Applies a rematerialized layer, three in a scan, and an ensemble of two."""
        x = nn.remat(Layer, static_argnums=(2,))(self.norm)(x, train)[0]
        scan = nn.scan(
            Layer,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        )
        x = scan(self.norm)(x, train)[0]
        ensemble = nn.vmap(
            Layer,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(None, None),  # pyright: ignore[reportArgumentType]
            axis_size=2,
        )
        return ensemble(self.norm)(x, train)[0]


def test_under_transforms_of_linen() -> None:
    """Under remat, scan and vmap, each layer gets its own statistics."""
    subject = linen(Wrapped(jnl.BatchNorm), ROWS)
    after = recalibrated(subject, [ROWS])
    np.testing.assert_allclose(after.output(), subject.output(train=True), atol=1e-4)
    assert {a.shape for a in after.stats.values()} == {(5,), (3, 5), (2, 5)}


class WrappedNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, norm: Any) -> None:
        def layer(key: Any) -> Any:
            return norm(5, rngs=nnx.Rngs(key))

        self.one = layer(KEY)
        self.several = nnx.vmap(layer)(jax.random.split(KEY, 3))

    def __call__(self, x: Any, train: bool) -> Any:
        """Applies a rematerialized layer, a scan, and an ensemble; the last two share layers."""
        x = nnx.remat(lambda norm, x: norm(x, use_running_average=not train))(self.one, x)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def scan(x: Any, norm: Any) -> Any:
            return nnx.relu(norm(x, use_running_average=not train)) + x

        return scan(x, self.several)


def test_under_transforms_of_nnx() -> None:
    """Under remat, scan and vmap, each layer gets its own statistics."""
    subject = nnx_model(WrappedNnx(nnx.BatchNorm))
    after = recalibrated(subject, [ROWS])
    np.testing.assert_allclose(after.output(), subject.output(train=True), atol=1e-4)


@pytest.mark.parametrize("by", ["second", lambda path: path == "second"])
def test_where(by: Any) -> None:
    """Other layers run in evaluation and do not change."""
    subject = linen(MLP(), ROWS)
    after = recalibrated(subject, HALVES, where=by)

    class Before(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(4)(x)
            return nn.relu(jnl.BatchNorm(True, name="first")(x))

    h: Any = Before().apply(subject.variables, ROWS)
    np.testing.assert_allclose(after.stats["batch_stats/second/mean"], np.mean(h, 0), rtol=1e-5)
    np.testing.assert_allclose(after.stats["batch_stats/second/var"], np.var(h, 0), rtol=1e-4)
    for name in ("mean", "var"):
        path = f"batch_stats/first/{name}"
        np.testing.assert_array_equal(after.stats[path], subject.stats[path])


@pytest.mark.parametrize(
    "make", [lambda: linen(MLP(), ROWS), lambda: nnx_model(NnxMLP(jnx.BatchNorm))]
)
def test_a_frozen_model_is_estimated_too(make: Any) -> None:
    """A frozen model gets the same statistics in both module systems, and stays frozen."""
    subject = make()
    frozen = subject.like(tools.freeze(subject.model, variables=subject.variables, affine=True))
    want, got = recalibrated(subject, HALVES), recalibrated(frozen, HALVES)
    for path, array in want.stats.items():
        np.testing.assert_array_equal(got.stats[path], array)
    assert_same(got.step()[1], got)


def test_modes_and_momenta_stay() -> None:
    """An NNX model comes back in the mode that it had."""
    model = jnx.BatchNorm(5, momentum=0.3, rngs=nnx.Rngs(0))
    for mode in (True, False):
        model.use_running_average = mode
        after = tools.recalibrate(model, HALVES)
        assert (type(after), after.use_running_average) == (jnx.BatchNorm, mode)
        assert (after.momentum, after.axis_name) == (0.3, None)
        np.testing.assert_allclose(after.mean[...], ROWS.mean(0), rtol=1e-5)
        assert nnx.graphdef(after) == nnx.graphdef(model)


def test_frozen_dict() -> None:
    """A FrozenDict comes back as one, and so does each collection that is one."""
    subject = linen(MLP(), ROWS)
    whole = recalibrated(subject._replace(variables=freeze(subject.variables)), HALVES)
    part = {**subject.variables, "params": freeze(subject.variables["params"])}
    mixed = recalibrated(subject._replace(variables=part), HALVES)
    assert jax.tree.structure(whole.variables) == jax.tree.structure(freeze(subject.variables))
    assert jax.tree.structure(mixed.variables) == jax.tree.structure(part)
    assert_same(whole, mixed)


def test_random_numbers_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """Dropout draws from ``rngs``; the progress bar is shown on request."""
    subject = linen(MLP(dropout=0.5), ROWS)._replace(variables=linen(MLP(), ROWS).variables)
    options = {"run": subject.train, "rngs": {"dropout": KEY}}
    after = recalibrated(subject, HALVES, progress=True, **options)
    plain = recalibrated(subject, HALVES)
    assert "Recalibrating" in capsys.readouterr().out
    for layer, same in (("first", True), ("second", False)):
        path = f"batch_stats/{layer}/mean"
        assert np.array_equal(after.stats[path], plain.stats[path]) == same


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "got none. An iterator"),
        (ROWS, "got one ndarray"),
        ({"x": ROWS}, "got one dict"),
        ([ROWS, np.where(ROWS > 3, np.nan, ROWS)], r"from batch 1 on .* in first, second"),
        ([ROWS[:0]], "got none for first"),
    ],
    ids=["none", "an array", "a dictionary", "NaN", "empty"],
)
def test_what_is_no_data(batches: Any, message: str) -> None:
    """The error for invalid batches says what was given, and variables do not change."""
    subject = linen(MLP(), ROWS)
    before = subject.arrays
    with pytest.raises(ValueError, match=message):
        recalibrated(subject, batches)
    for path, array in before.items():
        np.testing.assert_array_equal(subject.arrays[path], array)


def test_messages(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever turns on messages reads how far the statistics of each layer moved."""
    model = nn.BatchNorm(use_running_average=True, epsilon=0.0)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2)))
    x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    with caplog.at_level("INFO", "jaxnorm"):
        tools.recalibrate(nn.Sequential([model]), [x], variables=nested(variables))
    (record,) = caplog.records
    assert record.getMessage() == (
        "recalibrate: the means of layers_0 moved by up to 4 standard deviations, the variances to 2.5 times"
    )


def nested(variables: Any) -> Any:
    """The variables of a layer, as those of the first layer in a Sequential."""
    return {collection: {"layers_0": layer} for collection, layer in variables.items()}
