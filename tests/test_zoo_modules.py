"""Modules of norms that Flax does not have: Linen and NNX agree and store the right variables."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from jaxnorm.norms._shared._recipe import Recipe
from tests.modules import KEY, X, assert_equal, called, compiled, flat, load, moved, normal
from tests.selecting import thorough_but
from tests.stands_for import CLASSES

CHANNELS = X.shape[-1]
LABELS = jnp.array([2, 0, 2])
CONDITION = normal((3, 5), seed=4)

# The options, and the arguments after x, of every class that Flax does not have.
CASES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    **{name: ({}, ()) for name in CLASSES if issubclass(getattr(jnl, name), Recipe)},
    "AdaIN": ({"epsilon": 1e-3}, (normal((3, 2, 5, 32), seed=5),)),
    "AdaGroupNorm": ({"condition_features": 5, "num_groups": 4}, (CONDITION,)),
    "AdaRMSNorm": ({"condition_features": 5}, (CONDITION,)),
    "AdaRMSNormZero": ({"condition_features": 5, "use_shift": False}, (CONDITION,)),
    "AdaLayerNorm": ({"condition_features": 5}, (CONDITION,)),
    "AdaLayerNormZero": ({"condition_features": 5}, (CONDITION,)),
    "AddLayerNorm": ({"epsilon": 1e-3}, (X[::-1],)),
    "AddRMSNorm": ({"scale_offset": 0.5}, (X[::-1],)),
    "BatchRenorm": (
        {"momentum": 0.5, "rmax": 1.5, "dmax": lambda step: step.astype("float32") / 10},
        (),
    ),
    "ConditionalBatchNorm": ({"num_classes": 3}, (LABELS,)),
    "Derf": ({"use_bias": False}, ()),
    "DomainBatchNorm": ({"num_domains": 2, "momentum": None}, (jnp.int32(1),)),
    "EvoNormB0": ({"unbiased": True}, ()),
    "EvoNormS0": ({"num_groups": 4}, ()),
    "EvoNormS1": ({"num_groups": 4}, ()),
    "EvoNormS2": ({"num_groups": 4}, ()),
    "FilterResponseNorm": ({"use_threshold": False}, ()),
    "GatedRMSNorm": ({"num_groups": 4}, (X[::-1],)),
    "GhostBatchNorm": ({"virtual_batch_size": 1}, ()),
    "InputNorm": ({"max_abs": 1.0}, ()),
    "IterativeWhitening": ({"steps": 3}, ()),
    "PixelNorm": ({"epsilon": 1e-3}, ()),
    "QKNorm": ({"scale_offset": 0.5}, (X[::-1],)),
    "Spade": ({"hidden": 4, "map_channels": 6}, (normal((3, 2, 1, 6), seed=6),)),
    "SpadeBatchNorm": ({"hidden": 4, "map_channels": 6}, (normal((3, 2, 1, 6), seed=6),)),
    "SpadeGroupNorm": (
        {"hidden": 4, "map_channels": 6, "num_groups": 4},
        (normal((3, 2, 1, 6), seed=6),),
    ),
    "SwitchableNorm": ({"momentum": 0.5}, ()),
}
STATE = {
    "BatchRenorm": {"mean", "var", "steps"},
    "ConditionalBatchNorm": {"mean", "var"},
    "DomainBatchNorm": {"mean", "var", "count"},
    "EvoNormB0": {"mean", "var"},
    "EvoNormB1": {"mean", "var"},
    "EvoNormB2": {"mean", "var"},
    "FrozenBatchNorm": {"mean", "var", "scale", "bias"},
    "GhostBatchNorm": {"mean", "var"},
    "InputNorm": {"mean", "var", "count", "remainder"},
    "IterativeWhitening": {"mean", "matrix"},
    "MeanOnlyBatchNorm": {"mean", "var"},
    "SpadeBatchNorm": {"mean", "var"},
    "SwitchableNorm": {"mean", "var"},
}


def both(name: str, **more: Any) -> tuple[nn.Module, Any, Any]:
    """The Linen layer, the NNX module with the same variables, and these, none at its initial 0 or 1."""
    options, inputs = CASES[name]
    layer = getattr(jnl, name)(**options, **more)
    module = getattr(jnx, name)(CHANNELS, **options, **more, rngs=nnx.Rngs(0))
    variables = compiled(partial(layer.init, use_running_average=False), KEY, X, *inputs)
    params = jax.tree.map(
        lambda p: p + jnp.linspace(0.1, 0.5, p.size, dtype=p.dtype).reshape(p.shape),
        variables.get("params", {}),
    )
    variables = {**variables, "params": params} if params else variables
    load(module, flat(variables))
    return layer, module, variables


def loss_of(y: Any) -> Any:
    """A scalar that depends on every element."""
    leaves = jax.tree.leaves(y)
    return sum((leaf * normal(leaf.shape, leaf.dtype, seed=2)).sum() for leaf in leaves)


@pytest.mark.parametrize("name", thorough_but(CASES, *STATE))
def test_three_steps_and_an_evaluation(name: str) -> None:
    """Outputs, gradients, parameters and state agree bit for bit, and evaluation leaves the state alone."""
    layer, module, variables = both(name)
    inputs = CASES[name][1]

    @partial(jax.jit)
    def step(variables: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            y, updated = layer.apply(
                given, x, *inputs, use_running_average=False, mutable=["batch_stats"]
            )
            return loss_of(y), (y, updated)

        params = variables.get("params", {})
        grads, (y, updated) = jax.grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - g / 1024, params, grads)
        return y, {**variables, **updated, **({"params": params} if params else {})}

    def nnx_step(module: Any, x: Any) -> Any:
        def loss(module: Any) -> Any:
            y = module(x, *inputs, use_running_average=False)
            return loss_of(y), y

        grads, y = nnx.grad(loss, has_aux=True)(module)
        params = nnx.state(module, nnx.Param)
        nnx.update(module, jax.tree.map(lambda p, g: p - g / 1024, params, grads))
        return y

    for x in (X, 2 * X[::-1] + 1, X - 1):
        before = flat(variables)
        y, variables = step(variables, x)
        assert_equal(called(module, nnx_step, x), y)
        expected, found = flat(variables), flat(module)
        assert found.keys() == expected.keys() and moved(expected, found) == set()
        changed = moved(before, expected) - {"steps"}
        frozen = STATE.get(name, set()) if name == "FrozenBatchNorm" else set()
        assert not changed & frozen

    assert set(variables.get("batch_stats", {})) == STATE.get(name, set())
    evaluate = partial(layer.apply, mutable=["batch_stats"])
    y, updated = compiled(
        lambda v, x: evaluate(v, x, *inputs, use_running_average=True), variables, X
    )
    assert_equal(called(module, lambda m, x: m(x, *inputs, use_running_average=True), X), y)
    assert_equal(updated.get("batch_stats", {}), variables.get("batch_stats", {}))
    assert moved(flat(variables), flat(module)) == set()


@pytest.mark.parametrize(
    "name", thorough_but([n for n in CASES if n != "QKNorm"], *STATE, *list(CASES)[::2])
)
def test_masked(name: str) -> None:
    """NaN in the padding affects neither unmasked outputs nor the state, in both systems."""
    layer, module, variables = both(name)
    inputs = CASES[name][1]
    mask = jnp.arange(4).reshape(1, 4, 1, 1) < 3
    padded = jnp.where(mask, X, jnp.nan)

    def run(variables: Any, x: Any) -> Any:
        call: dict[str, Any] = {"mask": mask, "use_running_average": False}
        y, updated = layer.apply(variables, x, *inputs, mutable=["batch_stats"], **call)
        return jax.tree.map(lambda a: a[:, :3], y), updated

    expected, stats = compiled(run, variables, jnp.where(mask, X, 0))
    found, same = compiled(run, variables, padded)
    assert_equal(found, expected)
    assert_equal(same, stats)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, same)))
    y = called(module, lambda m, x: m(x, *inputs, mask=mask, use_running_average=False), padded)
    assert_equal(jax.tree.map(lambda a: a[:, :3], y), expected)


@pytest.mark.parametrize("name", thorough_but(CASES, *STATE))
def test_half_precision(name: str) -> None:
    """For bfloat16 input y has ``dtype``, parameters have ``param_dtype``, and the state is float32."""
    layer, _, variables = both(name, param_dtype=jnp.float32, dtype=jnp.bfloat16)
    inputs = CASES[name][1]
    apply = partial(layer.apply, use_running_average=False, mutable=["batch_stats"])
    with jax.numpy_dtype_promotion("standard"):
        y, updated = compiled(apply, variables, X.astype(jnp.bfloat16), *inputs)
    y = y[:1] if name in ("AddLayerNorm", "AddRMSNorm") else y  # the sum is as wide as the inputs
    assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype(jnp.bfloat16)}
    kept = {"steps", "count"}
    for path, leaf in flat(updated).items():
        assert leaf.dtype == np.float32 or path in kept


@pytest.mark.parametrize("name", sorted(STATE))
def test_nothing_counted_changes_nothing(name: str) -> None:
    """With a full mask, the state changes only in the number of steps, and the result is finite."""
    layer, _, variables = both(name)

    def run(variables: Any, x: Any) -> Any:
        mask = jnp.zeros((1, 1, 1, 1), bool)
        call: dict[str, Any] = {"mask": mask, "use_running_average": False}
        return layer.apply(variables, x, *CASES[name][1], mutable=["batch_stats"], **call)

    _, variables = compiled(lambda v, x: (0, {**v, **step_of(layer, name, v, x)}), variables, X)
    y, updated = compiled(run, variables, X)
    before, after = flat(variables["batch_stats"]), flat(updated["batch_stats"])
    assert moved(before, after) <= {"steps"}
    assert np.isfinite(y).all()


def step_of(layer: Any, name: str, variables: Any, x: Any) -> Any:
    """The updates of a training step."""
    call: dict[str, Any] = {"use_running_average": False, "mutable": ["batch_stats"]}
    return layer.apply(variables, x, *CASES[name][1], **call)[1]


def test_a_class_or_domain_that_is_none() -> None:
    """A label out of range gives NaN, and a traced domain out of range updates nothing."""
    layer, _, variables = both("ConditionalBatchNorm")
    for wrong in (3, -1):
        labels = jnp.array([0, wrong, 1])
        y: Any = layer.apply(variables, X, labels, use_running_average=True)
        assert np.isnan(y[1]).all() and np.isfinite(y[jnp.array([0, 2])]).all()
    layer, _, variables = both("DomainBatchNorm")
    apply = partial(layer.apply, use_running_average=False, mutable=["batch_stats"])
    _, updated = jax.jit(apply)(variables, X, jnp.int32(2))
    assert moved(flat(variables["batch_stats"]), flat(updated["batch_stats"])) == set()


def test_half_precision_weights_mix_exactly() -> None:
    """The shares of switchable norm add up to 1 for any param_dtype."""
    layer = jnl.SwitchableNorm(param_dtype=jnp.bfloat16, use_running_average=False)
    x = 100 + normal((4, 8, 8, 16))
    with jax.numpy_dtype_promotion("standard"):
        y, _ = layer.init_with_output(KEY, x)
    assert abs(float(jnp.float32(y).mean())) < 0.01


def test_a_string_is_one_part_of_a_path() -> None:
    """A string filter is one path component, not a sequence of letters, so the bias is unchanged."""
    layer = nn.Dense(3, bias_init=nn.initializers.ones)
    wrapped: Any = jnl.Reparameterized(layer, lambda w: 10 * w, variable_filter="kernel")
    with jax.numpy_rank_promotion("allow"):
        y, _ = wrapped.init_with_output(KEY, jnp.zeros((2, 4)))
    assert np.array_equal(y, jnp.ones((2, 3)))


@pytest.mark.parametrize("name", [n for n in CASES if issubclass(getattr(jnl, n), Recipe)])
def test_options_need_their_names(name: str) -> None:
    """An option without its name is an error that says so; Flax would take it for the parent module."""
    with pytest.raises(
        TypeError, match=f"options of {name} must be given by keyword; got 0.5 without"
    ):
        getattr(jnl, name)(0.5, **CASES[name][0])


def test_adaptive_layers_begin_as_their_base() -> None:
    """AdaLN-Zero starts with a gate of 0, SPADE as instance norm, and GRN as the identity."""
    layer = jnl.AdaLayerNormZero(condition_features=5)
    (y, gate), _ = layer.init_with_output(KEY, X, CONDITION)
    assert np.array_equal(gate, jnp.zeros((3, 1, 1, CHANNELS)) + 0 * y)
    base: Any = jnl.LayerNorm(use_scale=False, use_bias=False)
    np.testing.assert_allclose(y, base.apply({}, X), atol=1e-6)
    drawn = CASES["Spade"][1]
    y, _ = jnl.Spade(hidden=4, map_channels=6).init_with_output(KEY, X, *drawn)
    instance: Any = jnl.InstanceNorm(use_scale=False, use_bias=False, epsilon=1e-5)
    np.testing.assert_allclose(y, instance.apply({}, X), atol=1e-5)
    y, _ = jnl.GlobalResponseNorm().init_with_output(KEY, X)
    assert np.array_equal(y, X)


def test_the_papers_schedule() -> None:
    """Batch renorm starts as batch norm and ends with rmax 3 and dmax 5."""
    layer: Any = jnl.BatchRenorm(use_running_average=False)
    y, variables = layer.init_with_output(KEY, X)
    expected, _ = jnl.BatchNorm(False, epsilon=1e-3).init_with_output(KEY, X)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert variables["batch_stats"]["steps"] == 0
    assert [float(layer.rmax(jnp.int32(n))) for n in (0, 5000, 22_500, 40_000, 10**6)] == [
        1,
        1,
        2,
        3,
        3,
    ]
    assert [float(layer.dmax(jnp.int32(n))) for n in (0, 5000, 15_000, 25_000)] == [0, 0, 2.5, 5]


def test_the_flag_is_needed_where_it_matters_and_only_there() -> None:
    """Norms with running statistics need the mode; in NNX they train by default, like Flax's batch norm."""
    with pytest.raises(ValueError, match="use_running_average must be True"):
        jnx.EvoNormB0(CHANNELS, use_running_average=None, rngs=nnx.Rngs(0))(X)
    jnx.DynamicTanh(CHANNELS, rngs=nnx.Rngs(0))(X)
    module = jnx.BatchRenorm(CHANNELS, rngs=nnx.Rngs(0))
    seen = nnx.view(module, use_running_average=True)
    np.testing.assert_array_equal(seen(X), module(X, use_running_average=True))


@pytest.mark.parametrize("name", STATE)
def test_one_default_in_nnx(name: str) -> None:
    """A new module trains until `eval` is called, like Flax's BatchNorm."""
    (options, inputs), make = CASES[name], getattr(jnx, name)
    modules = [make(CHANNELS, **options, rngs=nnx.Rngs(0)) for _ in range(2)]
    y = called(modules[0], lambda m, x: m(x, *inputs), X)
    assert_equal(y, called(modules[1], lambda m, x: m(x, *inputs, use_running_average=False), X))
    assert_equal(flat(modules[0]), flat(modules[1]))
    modules[0].eval()
    y = called(modules[0], lambda m, x: m(x, *inputs), X)
    assert_equal(y, called(modules[1], lambda m, x: m(x, *inputs, use_running_average=True), X))


@pytest.mark.parametrize("system", ["linen", "nnx"])
@pytest.mark.parametrize(
    "name", ["ConditionalBatchNorm", "DomainBatchNorm", "FrozenBatchNorm", "MeanOnlyBatchNorm"]
)
def test_complex_values(name: str, system: str) -> None:
    """The state is complex from the start, and results match batch norm of complex values."""
    x, (options, inputs) = jax.lax.complex(X, X[::-1] ** 2), CASES[name]
    stats = jn.init_running_stats(CHANNELS, jnp.complex64)
    training = {"use_running_average": False}
    if system == "linen":
        layer = getattr(jnl, name)(**options)
        variables = layer.init(KEY, x, *inputs, **training)
        y, updated = layer.apply(variables, x, *inputs, **training, mutable=["batch_stats"])
        mean = updated["batch_stats"]["mean"]
    else:
        module = getattr(jnx, name)(
            CHANNELS, **options, param_dtype=jnp.complex64, rngs=nnx.Rngs(0)
        )
        y = module(x, *inputs, **training)
        mean = module.mean[...]
    if name == "FrozenBatchNorm":
        want, moved_to = jn.batch_norm_inference(x, stats), stats
    else:
        norm: Any = jn.mean_only_batch_norm if name == "MeanOnlyBatchNorm" else jn.batch_norm
        momentum = 0.0 if "momentum" in options else 0.99  # 0.0: cumulative, after one batch
        want, moved_to = norm(x, stats, momentum=momentum)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    assert mean.dtype == jnp.complex64
    found = mean[1] if name == "DomainBatchNorm" else mean
    np.testing.assert_allclose(found, moved_to.mean, rtol=1e-5, atol=1e-6)


COUNTING = [n for n in STATE if "var" in STATE[n] and hasattr(getattr(jnl, n), "momentum")]


@pytest.mark.parametrize("name", COUNTING)
def test_evaluation_needs_no_count(name: str) -> None:
    """Only training reads it, so a layer with momentum=None evaluates a checkpoint of one without."""
    options, inputs = CASES[name]
    layers = [getattr(jnl, name)(**{**options, "momentum": momentum}) for momentum in (0.9, None)]
    averaging, counting = (
        layer.init(KEY, X, *inputs, use_running_average=False) for layer in layers
    )
    assert "count" in counting["batch_stats"]
    want = layers[0].apply(averaging, X, *inputs, use_running_average=True)
    for variables in (averaging, counting):
        y, after = layers[1].apply(
            variables, X, *inputs, use_running_average=True, mutable=["batch_stats"]
        )
        assert_equal(y, want)
        assert_equal(after["batch_stats"], variables["batch_stats"])
