"""`SpectralNorm`, `WeightNorm` and `WeightStandardization` in Linen; the first two replace Flax's."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, serialization

import jaxnorm as jn
from jaxnorm import linen as jnl
from tests.modules import (
    KEY,
    WEIGHTS,
    Fields,
    assert_close,
    assert_equal,
    compiled,
    loose,
    normal,
    own,
    promotion_of,
    ramp,
)
from tests.selecting import thorough_but

X = normal((5, 6))
TARGET = normal((5, 3), seed=1)
STATE: Any = ["batch_stats"]


class Baz(nn.Module):
    """The example in Flax's documentation of weight norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies a layer."""
        return nn.Dense(2)(x)


class Bar(nn.Module):
    """Several layers, with the same name at different depths."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies four layers."""
        return nn.Dense(3)(Baz()(nn.Dense(3)(Baz()(x))))


class Bare(nn.Module):
    """A wrapper that does nothing."""

    layer_instance: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Calls the layer."""
        return self.layer_instance(x)


class Model(nn.Module):
    """A model with wrapped layers, so that they get numbered names."""

    wrap: Callable[[nn.Module], nn.Module]
    call: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies a layer and two wrapped ones."""
        x = nn.Dense(3)(x)
        x = self.wrap(nn.Dense(4))(x, **self.call)
        return self.wrap(nn.Dense(3))(x, **self.call)


CASES: dict[str, tuple[str, Callable[[], nn.Module], Fields]] = {
    "spectral": ("SpectralNorm", lambda: nn.Dense(3), {}),
    "spectral, steps": ("SpectralNorm", lambda: nn.Dense(3), {"n_steps": 3, "epsilon": 1e-8}),
    "spectral, none": ("SpectralNorm", lambda: nn.Dense(3), {"n_steps": 0}),
    "spectral, conv": ("SpectralNorm", lambda: nn.Conv(3, (3,)), {}),
    "spectral, layers": ("SpectralNorm", Bar, {"collection_name": "spectra"}),
    "weight": ("WeightNorm", lambda: nn.Dense(3), {}),
    "weight, all": ("WeightNorm", lambda: nn.Dense(3), {"variable_filter": None}),
    "weight, bare": ("WeightNorm", lambda: nn.Dense(3), {"use_scale": False, "epsilon": 1e-3}),
    "weight, one": ("WeightNorm", lambda: nn.Dense(3), {"feature_axes": None}),
    "weight, rows": ("WeightNorm", lambda: nn.Dense(3), {"feature_axes": 0, "scale_init": ramp}),
    "weight, conv": ("WeightNorm", lambda: nn.Conv(3, (3,)), {"feature_axes": (0, -1)}),
    "weight, layers": ("WeightNorm", Bar, {"variable_filter": {"kernel", "Baz"}}),
    "weight, dtypes": ("WeightNorm", lambda: nn.Dense(3), {"param_dtype": jnp.bfloat16}),
}


def mode(name: str, training: bool = True) -> Fields:
    """The mode that a call of Flax's class requires, and ours accepts."""
    return {"update_stats": training} if name == "SpectralNorm" else {}


def pair(case: str) -> list[Any]:
    """Our wrapper and Flax's, around layers of the same name."""
    name, layer, fields = CASES[case]
    return [getattr(system, name)(layer(), **fields) for system in (jnl, nn)]


def step(wrapper: nn.Module, variables: Any, x: jax.Array = X, **call: Any) -> Any:
    """Output, updated state, and the gradients of parameters and input."""

    def loss(params: Any, x: jax.Array) -> Any:
        given = {**variables, "params": params}
        y, updated = wrapper.apply(given, x, **call, mutable=["batch_stats", "spectra"])
        return (y * normal(y.shape, y.dtype, seed=2)).sum(), (y, updated)

    with promotion_of(wrapper):
        return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)


# --- the classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
def test_signature_is_that_of_flax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields, order and defaults match Flax's, and a call also accepts the mode of all norms."""
    monkeypatch.setattr("jaxnorm.linen._variables.check_fields", lambda fields: None)
    ours, theirs = getattr(jnl, name), getattr(nn, name)
    assert own(ours, theirs) == [] and ours.__name__ == name
    assert own(ours.__call__, theirs.__call__) == ["use_running_average"]
    names = [n for n in inspect.signature(theirs).parameters if n not in ("parent", "name")]
    values = [nn.Dense(3), *(f"value of {n}" for n in names[1:])]
    assert [getattr(ours(*values), n) for n in names[1:]] == values[1:]


@pytest.mark.parametrize("name", WEIGHTS)
def test_only_call_is_a_method_that_flax_sees(name: str) -> None:
    """`nn.intercept_methods` and profiler scopes see only the wrapper's ``__call__``."""
    seen = set()

    def record(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        seen.add((type(context.module).__name__, context.method_name))
        return function(*args, **kwargs)

    wrapper = getattr(jnl, name)(nn.Dense(3))
    with nn.intercept_methods(record):
        jax.eval_shape(partial(wrapper.init, use_running_average=True), KEY, X)
    assert {method for of, method in seen if of == name} == {"__call__"}
    assert ("Dense", "__call__") in seen


# --- variables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_variables_are_those_of_flax(case: str) -> None:
    """Collections, names, shapes and dtypes match Flax's; weights are initialized as in the bare layer."""
    ours, theirs = pair(case)
    call = mode(CASES[case][0])
    bare = Bare(CASES[case][1]())

    def init(key: jax.Array) -> Any:
        return ours.init(key, X, **call), bare.init(key, X)

    with loose():
        expected = jax.eval_shape(partial(theirs.init, **call), KEY, X)
    variables, alone = compiled(init, KEY)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected
    )
    assert_equal(variables["params"]["layer_instance"], alone["params"]["layer_instance"])


@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
def test_names_in_a_model_are_those_of_flax(name: str) -> None:
    """Wrappers are numbered (``SpectralNorm_0``); their state has the layer's name: ``Dense_1/kernel/u``."""
    found = []
    for system in (jnl, nn):
        model = Model(getattr(system, name), mode(name))
        with loose():
            found.append(jax.eval_shape(model.init, KEY, X))
    assert found[0] == found[1]
    own_names = found[0]["batch_stats" if name == "SpectralNorm" else "params"]
    last = "u" if name == "SpectralNorm" else "scale"
    assert f"Dense_1/kernel/{last}" in own_names[f"{name}_0"]
    assert f"Dense_2/kernel/{last}" in own_names[f"{name}_1"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_kernel_is_never_written(name: str) -> None:
    """Neither ``init`` nor ``apply(mutable=True)`` stores a normalized weight. Flax's init does."""
    wrapper = getattr(jnl, name)(nn.Dense(3))

    def of(key: jax.Array) -> Any:
        y, variables = wrapper.init_with_output(key, X, use_running_average=False)
        again = [
            wrapper.apply(variables, X, use_running_average=mode, mutable=True)
            for mode in (False, True)
        ]
        return y, variables, again, nn.WeightNorm(nn.Dense(3)).init(key, X)

    y, variables, again, theirs = compiled(of, KEY)
    kernel = variables["params"]["layer_instance"]["kernel"]
    assert not np.allclose(jnp.linalg.norm(kernel, axis=0), 1, atol=1e-2)
    assert not np.allclose(y, X @ kernel, atol=1e-2), "not normalized"
    for other, updated in again:
        assert_close(other, y, 1e-6)
        assert_equal(updated["params"], variables["params"])
    overwritten = theirs["params"]["layer_instance"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(overwritten, axis=0), 1, rtol=1e-5)


def test_spectral_state_before_any_step_is_a_unit_direction() -> None:
    """``init`` takes no step: sigma is 1, and each parameter gets a different random u of length 1."""
    wrapper = jnl.SpectralNorm(Bar())
    state = compiled(lambda key: wrapper.init(key, X, update_stats=True), KEY)["batch_stats"]
    directions = [np.asarray(v).ravel() for n, v in state.items() if n.endswith("/u")]
    assert [v for n, v in state.items() if n.endswith("/sigma")] == [1.0] * 4
    for u in directions:
        np.testing.assert_allclose(np.linalg.norm(u), 1, rtol=1e-6)
    assert len({tuple(u) for u in directions}) == 4


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", thorough_but(CASES, *list(CASES)[::3]))
def test_flax_checkpoints_give_flax_answers(case: str) -> None:
    """For trained variables from Flax, loaded as bytes, outputs, state and gradients match Flax."""
    ours, theirs = pair(case)
    calls = [mode(CASES[case][0], training) for training in (True, False)]

    def init(key: jax.Array, other: jax.Array) -> Any:
        with loose():
            made = theirs.init(key, X, **calls[0])
        wave = [0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape) for a in jax.tree.leaves(made)]
        leaves = [a + w.astype(a.dtype) for a, w in zip(jax.tree.leaves(made), wave, strict=True)]
        fresh = ours.init(other, X, **calls[0])
        return jax.tree.unflatten(jax.tree.structure(made), leaves), fresh

    def steps(loaded: Any, made: Any) -> Any:
        given = ((ours, loaded), (theirs, made))
        return [[step(wrapper, v, **call) for call in calls] for wrapper, v in given]

    made, fresh = compiled(init, *jax.random.split(KEY))
    loaded = serialization.from_bytes(fresh, serialization.to_bytes(made))
    assert_close(*compiled(steps, loaded, made), tolerance=0.02 if "dtypes" in case else 1e-4)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32], ids=["none", "bf16", "f32"])
@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
def test_dtypes_are_those_of_flax(name: str, dtype: Any) -> None:
    """The dtypes of output and state match Flax for half-precision weights and state."""
    x = X.astype(jnp.bfloat16)
    for param_dtype in (jnp.float32, jnp.bfloat16):
        shapes = []
        for system in (jnl, nn):
            layer = nn.Dense(3, param_dtype=jnp.bfloat16)
            wrapper = getattr(system, name)(layer, dtype=dtype, param_dtype=param_dtype)
            init = partial(wrapper.init, **mode(name))
            with loose():
                variables = jax.eval_shape(init, KEY, x)
                kernel = jax.ShapeDtypeStruct((6, 3), jnp.bfloat16)  # Flax's init changes it
                variables["params"]["layer_instance"]["kernel"] = kernel
                apply = partial(wrapper.apply, mutable=STATE, **mode(name))
                shapes.append((variables, jax.eval_shape(apply, variables, x)))
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("call", [{"update_stats": False}, {"use_running_average": True}], ids=str)
def test_evaluation_leaves_the_state(call: Fields) -> None:
    """Evaluation changes no bit and needs no mutable collection; training without one raises Flax's error."""
    wrapper = jnl.SpectralNorm(nn.Dense(3))
    variables = wrapper.init(KEY, X, update_stats=False)
    y, updated = wrapper.apply(variables, X, **call, mutable=STATE)
    assert_equal(updated["batch_stats"], variables["batch_stats"])
    assert_equal(y, wrapper.apply(variables, X, **call))
    with pytest.raises(errors.ModifyScopeVariableError, match="batch_stats"):
        wrapper.apply(variables, X, update_stats=True)


@pytest.mark.parametrize(
    "call",
    [
        {"update_stats": True},
        {"use_running_average": False},
        {"update_stats": True, "use_running_average": True},
    ],
    ids=str,
)
def test_training_moves_the_state(call: Fields) -> None:
    """Training updates the state by one call of the function; ``update_stats`` overrides the other flag."""
    wrapper = jnl.SpectralNorm(nn.Dense(3), n_steps=2)
    variables: Any = wrapper.init(KEY, X, update_stats=False)
    updated: Any = wrapper.apply(variables, X, **call, mutable=STATE)[1]
    before, after = (
        jn.SpectralState(s["layer_instance/kernel/u"], s["layer_instance/kernel/sigma"])
        for s in (variables["batch_stats"], updated["batch_stats"])
    )
    kernel = variables["params"]["layer_instance"]["kernel"]
    assert_equal(after, jn.spectral_norm(kernel, before, n_steps=2)[1])
    assert not np.array_equal(before.u, after.u) and after.sigma != 1
