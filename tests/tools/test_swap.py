"""`swap` gives the model that was written with another norm."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.modules import assert_equal, normal
from tests.tools.models import (
    IMAGES,
    KEY,
    MLP,
    ROWS,
    NnxMLP,
    Reused,
    Stacked,
    Subject,
    assert_same,
    linen,
    nnx_model,
    resnet20,
    small_cnn,
)


class One(nn.Module):
    """A layer and its norm."""

    norm: Any

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Applies the norm to the layer's output."""
        return self.norm(name="bn")(nn.Dense(4)(x), use_running_average=not train)


def swapped(subject: Subject, norm: Any, **options: Any) -> Subject:
    """The subject with another norm."""
    result = tools.swap(subject.model, norm, variables=subject.variables, **options)
    return subject.like(*result) if isinstance(result, tuple) else subject.like(result)


def structure(variables: Any) -> Any:
    """Shapes and dtypes."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "layer": ("layer", {}),
    "group": ("group", {"num_groups": 2}),
    "rms": ("rms", {"epsilon": 0.1}),
    "instance": ("instance", {}),
    "without bias": ("layer", {"use_bias": False}),
    "local_response": ("local_response", {"size": 3}),
    "none": ("none", {}),
    "batch": ("batch", {"momentum": 0.5}),
    "plain average": ("batch", {"momentum": None}),
    "untracked": ("batch", {"track_running_stats": False}),
    "half": ("layer", {"param_dtype": jnp.bfloat16, "dtype": jnp.float32}),
}
GRID = ROWS[:15].reshape(3, 5, 5)  # norms reduce over different axes of it
HAVE_NO_EPSILON = {"none", "local_response"}


def fields_of(norm: str, options: dict[str, Any]) -> dict[str, Any]:
    """The norm's fields, for a model whose batch norm had another epsilon."""
    return options if norm in HAVE_NO_EPSILON else {"epsilon": 0.01, **options}


@pytest.mark.parametrize("way", WAYS)
def test_as_written_with_that_norm(way: str) -> None:
    """The structure matches a fresh init, and outputs for the same parameters match bit for bit."""
    norm, options = WAYS[way]
    subject = linen(One(partial(nn.BatchNorm, epsilon=0.01)), GRID)
    before = subject.arrays
    new = swapped(subject, norm, **options)
    written = new._replace(model=One(jnl.get_norm(norm, **fields_of(norm, options))))
    for model in (new.model, written.model):
        fresh = jax.eval_shape(partial(model.init, train=True), KEY, GRID)
        assert structure(new.variables) == structure(dict(fresh))
    for train in (True, False) if way == "plain average" else (True,):
        (got, after), (want, expected) = new.step(train=train), written.step(train=train)
        np.testing.assert_array_equal(got, want)
        assert_same(after, expected)
    for path, array in before.items():
        np.testing.assert_array_equal(subject.arrays[path], array)


@pytest.mark.parametrize(
    ("old", "way"),
    [*((nnx.BatchNorm, way) for way in WAYS), (jnx.BatchNorm, "batch"), (jnx.BatchNorm, "group")],
)
def test_as_written_with_that_norm_in_nnx(old: Any, way: str) -> None:
    """The same holds in NNX, where shared layers stay shared and the given model does not change."""
    norm, options = WAYS[way]
    subject = nnx_model(NnxMLP(partial(old, epsilon=0.01), shared=way == "group"), GRID)
    before = subject.arrays
    new = swapped(subject, norm, **options)
    written = NnxMLP(jnx.get_norm(norm, **fields_of(norm, options)), shared=way == "group")
    assert nnx.graphdef(new.model) == nnx.graphdef(written)
    assert structure(nnx.state(new.model)) == structure(nnx.state(written))
    nnx.update(written, nnx.state(new.model))
    expected = new._replace(model=written)
    np.testing.assert_array_equal(new.output(train=True), expected.output(train=True))
    assert type(subject.model.first) is old
    new.model.dense.bias[...] += 1
    for path, array in before.items():
        np.testing.assert_array_equal(subject.arrays[path], array)


def test_by_constructor() -> None:
    """A class or a partial of one is accepted, from us or from Flax."""
    subject = linen(MLP(), ROWS)
    want = swapped(subject, "group", num_groups=2)
    for norm, options in (
        (nn.GroupNorm, {"num_groups": 2}),
        (partial(jnl.GroupNorm, num_groups=1), {"num_groups": 2}),
        (jnl.get_norm("group", num_groups=2), {}),
    ):
        got = swapped(subject, norm, **options)
        assert_same(got, want)
        np.testing.assert_allclose(got.output(), want.output(), rtol=1e-5, atol=1e-6)
    assert swapped(subject, "group", num_groups=2).model == want.model != subject.model


def test_ours_for_flaxs() -> None:
    """Statistics, momentum and NNX's mode carry over."""
    flaxs = nnx_model(NnxMLP(partial(nnx.BatchNorm, momentum=0.7)))
    flaxs.model.eval()
    ours = swapped(flaxs, "batch").model.first
    assert (ours.momentum, ours.use_running_average) == (0.7, True)
    subject = linen(Reused(partial(nn.BatchNorm, momentum=0.7)), IMAGES)
    (want, a), (got, b) = subject.step(), swapped(subject, "batch").step()
    np.testing.assert_allclose(got, want, atol=1e-4)
    for path, array in a.stats.items():
        np.testing.assert_allclose(b.stats[path], array, rtol=1e-4, atol=1e-5)


class Mixed(nn.Module):
    """A layer with spectral norm and two norms, all told their mode by keyword."""

    norms: tuple[Any, Any] = (nn.BatchNorm, nn.BatchNorm)

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Applies all three."""
        first, second = self.norms
        flag: dict[str, Any] = {"use_running_average": not train}
        x = jnl.SpectralNorm(nn.Dense(4))(x, **flag)
        return second(name="second")(first(name="first")(x, **flag), **flag)


@pytest.mark.parametrize("where", [None, "second"])
def test_other_layers_stay(where: str | None) -> None:
    """Norms that ``where`` does not match, and norms of weights, keep their variables and arguments."""
    subject = linen(Mixed(), ROWS)
    new = swapped(subject, "layer", where=where, epsilon=1e-5)
    layer = jnl.get_norm("layer", epsilon=1e-5)
    written = new._replace(model=Mixed((nn.BatchNorm if where else layer, layer)))
    for path, array in subject.arrays.items():
        if "SpectralNorm" in path or (where and where not in path):
            np.testing.assert_array_equal(new.arrays[path], array)
    for train in (True, False):
        (got, after), (want, expected) = new.step(train=train), written.step(train=train)
        np.testing.assert_array_equal(got, want)
        assert_same(after, expected)


def test_where() -> None:
    """The other layers stay batch norms with their own statistics."""
    subject = linen(MLP(), ROWS)
    new = swapped(subject, "rms", where="first")
    assert new.stats.keys() == {"batch_stats/second/mean", "batch_stats/second/var"}
    assert new.variables["params"]["first"].keys() == {"scale"}
    twice = swapped(new, "layer")
    assert "batch_stats" not in twice.variables
    assert np.isfinite(twice.output(train=True)).all()


@pytest.mark.parametrize(
    ("system", "norm"),
    [(jnl, "layer"), (jnl, "group"), (jnx, "rms"), (jnx, "instance"), (jnx, "batch")],
)
def test_features_along_axis_1(system: Any, norm: str) -> None:
    """Results match those with features along the last axis."""
    x = np.random.default_rng(0).normal(2, 3, (4, 3, 6, 5)).astype(np.float32)
    options: Any = {"num_groups": 3} if norm == "group" else {}
    outputs = []
    for axis in (1, -1):
        here = x if axis == 1 else np.moveaxis(x, 1, -1)
        if system is jnl:
            model = jnl.BatchNorm(True, axis=axis)
            model, variables = tools.swap(model, norm, variables=model.init(KEY, here), **options)
            outputs.append(model.apply(variables, here))
        else:
            bn = jnx.BatchNorm(3, axis=axis, use_running_average=True, rngs=nnx.Rngs(0))
            swapped: Any = tools.swap(nnx_model(bn, here).model, norm, **options)
            outputs.append(swapped(here))
    np.testing.assert_allclose(outputs[0], np.moveaxis(outputs[1], -1, 1), rtol=1e-5, atol=1e-5)


def test_models_of_others() -> None:
    """The CNN and ResNet-20 have a gradient for every parameter."""
    for subject in (linen(small_cnn(), IMAGES), resnet20()):
        new = swapped(subject, "group", num_groups=2)
        fresh = jax.eval_shape(partial(new.model.init, train=True), KEY, IMAGES)
        assert structure(new.variables) == structure(dict(fresh)) != structure(subject.variables)

    def loss(params: Any) -> Any:
        return new.like({"params": params}).output(train=True).sum()

    grads = jax.eval_shape(jax.grad(loss), new.variables["params"])
    assert structure(grads) == structure(new.variables["params"])


def test_under_a_scan_and_of_frozen_dicts() -> None:
    """Stacked parameters are the swapped norm's; a FrozenDict comes back as one."""
    subject = linen(Stacked(nn.BatchNorm), ROWS)
    for norm, options in (("layer", {}), ("batch", {"momentum": None})):
        new = swapped(subject, norm, **options)
        fresh = jax.eval_shape(partial(new.model.init, train=True), KEY, ROWS)
        assert structure(new.variables) == structure(dict(fresh))
    frozen = swapped(subject._replace(variables=freeze(subject.variables)), "layer")
    assert structure(frozen.variables) == structure(freeze(swapped(subject, "layer").variables))


def test_beside_freeze() -> None:
    """The order does not matter; a frozen layer that is swapped for a batch norm stays frozen in Linen."""
    subject = linen(MLP(), ROWS)
    frozen = subject.like(tools.freeze(subject.model, "first", variables=subject.variables))
    one = swapped(frozen, "layer", where="second")
    other = swapped(subject, "layer", where="second")
    other = other.like(tools.freeze(other.model, "first", variables=other.variables))
    np.testing.assert_array_equal(one.output(train=True), other.output(train=True))
    for changed in (one, other):
        assert_same(changed.step()[1], changed)
    thawed = other.like(tools.unfreeze(other.model))
    assert thawed.model == swapped(subject, "layer", where="second").model


def linen_with(**fields: Any) -> Subject:
    """A batch norm."""
    return linen(jnl.BatchNorm(**fields), np.ones((2, 4, 5), np.float32))


def applied(subject: Subject, norm: Any, **options: Any) -> Any:
    """Swaps and calls the model."""
    return swapped(subject, norm, **options).model.apply(
        {"params": subject.variables["params"]}, subject.x
    )


def of_nnx(norm: Any, /, *, to: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A swapped NNX batch norm."""
    return tools.swap(jnx.BatchNorm(4, rngs=nnx.Rngs(0), **fields), norm, **(to or {}))


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "activation": (
        lambda: applied(linen_with(activation="relu"), nn.LayerNorm),
        "got '' with activation='relu', which LayerNorm does not support",
    ),
    "activation, NNX": (lambda: of_nnx(nnx.LayerNorm, activation="relu"), "activation='relu'"),
    "residual": (
        lambda: swapped(linen_with(), "layer").model.apply({}, ROWS, residual=ROWS),
        "got a residual at '', which LayerNorm does not take",
    ),
    "axis": (
        lambda: applied(linen_with(axis=1), nn.GroupNorm, num_groups=2),
        "GroupNorm takes the last axis .* got '' with axis=1",
    ),
    "axis, NNX": (lambda: of_nnx(nnx.GroupNorm, to={"num_groups": 2}, axis=1), "with axis=1"),
    "name": (lambda: swapped(linen_with(), "grp"), "norm must be one of batch, layer"),
    "of weights": (lambda: swapped(linen_with(), "spectral"), "in flax.linen .* got 'spectral'"),
    "of weights, NNX": (lambda: of_nnx("weight"), "in flax.nnx .* got 'weight'"),
    "instance": (lambda: swapped(linen_with(), jnl.LayerNorm()), "the class of a norm"),
    "other system": (lambda: swapped(linen_with(), jnx.LayerNorm), "in flax.linen"),
    "other system, NNX": (lambda: of_nnx(jnl.LayerNorm), "in flax.nnx"),
    "where": (lambda: swapped(linen_with(), "layer", where="x"), "got where='x'"),
    "no norm": (
        lambda: swapped(Subject(nn.Dense(2), {"params": {}}, ROWS), "layer"),
        "without any",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_swapped(case: str) -> None:
    """The error for a norm that cannot be swapped says what was given."""
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("norm", ["layer", "rms", "group", "instance"])
def test_the_activation_carries_over(norm: str) -> None:
    """Norms with activations apply that of the batch norm, unless ``options`` say otherwise."""
    options: dict[str, Any] = {"num_groups": 5} if norm == "group" else {}
    model, x = jnl.BatchNorm(use_running_average=True, activation="silu"), normal((2, 4, 5))
    new, carried = tools.swap(model, norm, variables=model.init(KEY, x), **options)
    written = jnl.get_norm(norm, epsilon=1e-5, activation="silu", **options)()
    np.testing.assert_array_equal(new.apply(carried, x), written.apply(carried, x))
    in_nnx = jnx.BatchNorm(5, activation="silu", rngs=nnx.Rngs(0))
    for other in ({}, {"activation": "gelu"}):
        to: dict[str, Any] = {**options, **other}
        layer: Any = tools.swap(in_nnx, norm, **to)
        assert layer.activation == other.get("activation", "silu")


@pytest.mark.parametrize("swap", [lambda **o: swapped(linen_with(), "group", **o), of_nnx])
def test_a_typo_in_an_option(swap: Any) -> None:
    """A TypeError names the misspelled option before anything runs."""
    with pytest.raises(TypeError, match="'num_group'"):
        swap(num_group=2) if swap is not of_nnx else of_nnx("group", to={"num_group": 2})


def test_lists_are_tuples() -> None:
    """Flax hashes options, so lists are converted."""
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])
    x = normal((3, 4))
    variables = model.init(jax.random.key(0), x)
    outputs = []
    for axes in ([-1], (-1,)):
        swapped, carried = tools.swap(model, "layer", variables=variables, reduction_axes=axes)
        outputs.append(swapped.apply(carried, x))
    assert_equal(*outputs)
