"""The other Linen norms of activations behave like Flax's in everything that a model can see."""

import inspect
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxnorm import linen as jnl
from tests.modules import (
    ACTIVATIONS,
    CASES,
    COTANGENT,
    KEY,
    MASK,
    OPTIONS,
    RANDOM,
    Fields,
    X,
    assert_close,
    assert_equal,
    compiled,
    inits,
    loose,
    normal,
    own,
    promotion_of,
)

LAYERS = [name for name in ACTIVATIONS if name != "BatchNorm"]
ALL = (*ACTIVATIONS, "LocalResponseNorm")
OTHER_CASES = [(name, option) for name, option in CASES if name != "BatchNorm"]
MODE: Fields = {"use_running_average": True}
OWN = {
    "BatchNorm": ["unbiased", "track_running_stats", "virtual_batch_size", "activation", "save_as"],
    "LayerNorm": ["activation"],
    "RMSNorm": ["scale_offset", "fraction", "scale_after_cast", "activation"],
    "GroupNorm": ["feature_axes", "activation"],
    "InstanceNorm": [
        *("track_running_stats", "use_running_average", "momentum", "unbiased", "activation")
    ],
}


def pair(name: str, **fields: Any) -> list[Any]:
    """Our layer and Flax's, with the same fields."""
    return [getattr(system, name)(**fields) for system in (jnl, nn)]


def initial(layer: nn.Module, key: jax.Array = KEY, x: jax.Array = X) -> Any:
    """Initial variables."""
    with promotion_of(layer):
        return layer.init(key, x)


def outcome(layer: Any, variables: Any, x: jax.Array = X, **call: Any) -> Any:
    """Output, updated statistics, and the gradients of parameters and input."""

    def loss(params: Any, x: jax.Array) -> Any:
        given = {**variables, "params": params}
        y, updated = layer.apply(given, x, mutable=["batch_stats"], **call)
        return (y * COTANGENT).sum() / 10, (y, updated)

    with promotion_of(layer):
        return jax.grad(loss, (0, 1), has_aux=True)(variables.get("params", {}), x)


# --- the classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_signature_begins_with_that_of_flax(name: str) -> None:
    """Flax's fields come in Flax's order with Flax's defaults; ours come after and are keyword-only."""
    ours, theirs = getattr(jnl, name), getattr(nn, name)
    assert own(ours, theirs) == OWN[name] and ours.__name__ == name
    parameters = inspect.signature(ours).parameters
    assert all(parameters[n].kind is inspect.Parameter.KEYWORD_ONLY for n in OWN[name])
    added = ["residual"] if name == "BatchNorm" else ["use_running_average"]
    assert own(ours.__call__, theirs.__call__) == added


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_construction_by_position(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each positional argument sets the same field as in Flax."""
    monkeypatch.setattr("jaxnorm.linen._variables.check_fields", lambda fields: None)
    theirs = inspect.signature(getattr(nn, name)).parameters
    names = [n for n, p in theirs.items() if p.kind is not p.KEYWORD_ONLY and n != "parent"]
    names = [n for n in names if n != "name"]
    values = [f"value of {n}" for n in names]
    for layer in (getattr(jnl, name)(*values), getattr(nn, name)(*values)):
        assert [getattr(layer, n) for n in names] == values


# --- variables -----------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_initial_variables_are_those_of_flax(name: str, param_dtype: str) -> None:
    """Collections, names, shapes and dtypes match Flax's, and so do values for the same key."""
    random: Fields = {key: RANDOM[key] for key in inits(name)}
    pairs = [
        pair(name, param_dtype=jnp.dtype(param_dtype), **random, **fields)
        for fields in OPTIONS[name].values()
    ]
    found = compiled(lambda key: [[initial(b, key) for b in both] for both in pairs], KEY)
    for ours, theirs in found:
        assert_equal(ours, theirs)
    assert jnp.std(found[0][0]["params"]["scale"]) > 0.1


@pytest.mark.parametrize("name", LAYERS)
def test_automatic_names_and_initial_values_in_a_model(name: str) -> None:
    """Layers are numbered LayerNorm_0, LayerNorm_1 and use the same keys as Flax's."""

    class Model(nn.Module):
        norm: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.norm()(nn.Dense(32)(self.norm()(x)))

    random: Fields = {key: RANDOM[key] for key in inits(name)}
    models = [Model(partial(getattr(system, name), **random)) for system in (jnl, nn)]
    ours, theirs = compiled(lambda key: [initial(model, key) for model in models], KEY)
    assert {f"{name}_0", f"{name}_1"} < set(ours["params"])
    assert_equal(ours, theirs)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_init_does_not_need_the_mapped_axis(name: str) -> None:
    """``init`` works if ``axis_name`` is unbound; ``apply`` does not."""
    fields: Fields = {"axis_name": "unbound", "axis_index_groups": [[0, 1]]}
    if name in ("BatchNorm", "InstanceNorm"):
        fields |= {"use_running_average": False, "track_running_stats": True}
    layer = getattr(jnl, name)(**fields)
    variables = jax.eval_shape(layer.init, KEY, X)
    with pytest.raises(ValueError, match="unbound"):
        jax.eval_shape(partial(layer.apply, mutable=["batch_stats"]), variables, X)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_only_call_is_a_method_that_flax_sees(name: str) -> None:
    """`nn.intercept_methods` and profiler scopes see only ``__call__``, as in Flax's layers."""
    seen = []

    def record(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        seen.append(context.method_name)
        return function(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(partial(getattr(jnl, name)().init, **MODE), KEY, X)
    assert seen == ["__call__"]


# --- results -------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "option"), OTHER_CASES)
def test_answers_and_gradients_are_those_of_flax(name: str, option: str) -> None:
    """Outputs and gradients of input and parameters match Flax for Flax's variables, masked or not."""
    fields = {**OPTIONS[name][option], **(inits(name) if option != "default" else {})}
    ours, theirs = pair(name, **fields)

    def all_of(x: jax.Array) -> Any:
        variables = initial(theirs)
        # A mask that broadcasts raises an error in Flax's group norm, so the mask is full.
        calls: list[Fields] = [{}, {"mask": MASK}]
        return [[outcome(b, variables, x, **call) for call in calls] for b in (ours, theirs)]

    assert_close(*compiled(all_of, X), tolerance=1e-4)


@pytest.mark.sampled
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16", "float16", "int32"])
def test_result_dtype_is_that_of_flax(x_dtype: str, dtype: str | None, param_dtype: str) -> None:
    """The result has ``dtype``, or else the promoted dtype of input and existing parameters."""
    x = jax.ShapeDtypeStruct(X.shape, jnp.dtype(x_dtype))
    for name in LAYERS:
        for option in ("default", list(OPTIONS[name])[-1]):
            fields = {**OPTIONS[name][option], "dtype": dtype, "param_dtype": param_dtype}
            ours, theirs = pair(name, **fields)
            found = jax.eval_shape(ours.init_with_output, KEY, x)
            with loose():
                assert found == jax.eval_shape(theirs.init_with_output, KEY, x)


@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_answers_are_those_of_flax(name: str) -> None:
    """For bfloat16 input and parameters, results match Flax to the last bit of the coarser dtype."""
    x = normal(X.shape, jnp.bfloat16)
    dtypes = None, jnp.bfloat16, jnp.float32
    fields: Fields = {"param_dtype": jnp.bfloat16, **inits(name)}
    layers = [pair(name, dtype=dtype, **fields) for dtype in dtypes]

    def of(layer: Any, x: jax.Array) -> Any:
        with promotion_of(layer):
            return layer.init_with_output(KEY, x)

    for ours, theirs in compiled(lambda x: [[of(b, x) for b in both] for both in layers], x):
        # Flax rounds once more: it multiplies scale and root first, in bfloat16 if that is dtype.
        assert_close(ours, theirs, 2 * float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.parametrize("name", LAYERS)
def test_switches_of_flax_that_change_nothing(name: str) -> None:
    """Both values of ``use_fast_variance`` and ``force_float32_reductions`` give the stable result."""
    x = 1e4 + normal(X.shape)
    plain = getattr(jnl, name)()
    other = getattr(jnl, name)(use_fast_variance=False, force_float32_reductions=False)
    ys = [compiled(lambda x, b=b: b.init_with_output(KEY, x)[0], x) for b in (plain, other)]
    assert_equal(*ys)
    if name != "RMSNorm":
        np.testing.assert_allclose(jnp.std(ys[0]), 1, rtol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_takes_the_call_of_every_norm(name: str) -> None:
    """Norms ignore arguments of batch norm's call that they do not need, and accept lists as arrays."""
    layer = getattr(jnl, name)()

    def calls(x: jax.Array) -> Any:
        variables = layer.init(KEY, x, **MODE)
        y = layer.apply(variables, x, use_running_average=True, mask=None)
        if name == "BatchNorm":
            return y, y, y
        plain = layer.apply(variables, x)
        return y, plain, layer.apply(variables, x, use_running_average=False)

    y, *others = compiled(calls, X)
    for other in others:
        assert_equal(y, other)
    listed = jax.eval_shape(lambda: layer.init_with_output(KEY, X.tolist(), **MODE)[0])
    assert (listed.shape, listed.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("direction", ["theirs to ours", "ours to theirs"])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoints_are_interchangeable(name: str, direction: str) -> None:
    """Variables of one load into the other as bytes and give the same results."""
    layers = pair(name, **inits(name))
    target, source = layers if direction == "theirs to ours" else layers[::-1]
    keys = jax.random.split(KEY)
    variables, fresh = compiled(lambda a, b: (initial(source, a), initial(target, b)), *keys)
    loaded = serialization.from_bytes(fresh, serialization.to_bytes(variables))
    assert_equal(loaded, jax.tree.map(np.asarray, variables))
    found = compiled(lambda a, b: (outcome(target, a), outcome(source, b)), loaded, variables)
    assert_close(*found, tolerance=1e-4)


def test_layer_instance_and_group_norm_meet() -> None:
    """With the same key, norms that Flax documents as equal have equal parameters and close results."""
    fields: Fields = {**RANDOM, "epsilon": 1e-3}
    layers = [
        jnl.LayerNorm(reduction_axes=(1, 2), **fields),
        jnl.InstanceNorm(**fields),
        jnl.GroupNorm(num_groups=32, **fields),
        jnl.GroupNorm(num_groups=None, group_size=1, **fields),
    ]
    found = compiled(lambda x: [layer.init_with_output(KEY, x) for layer in layers], X)
    (y, variables), *others = found
    for other_y, other_variables in others:
        assert_equal(other_variables, variables)
        assert_close(other_y, y, 1e-5)
