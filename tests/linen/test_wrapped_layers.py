"""Linen wrappers of weights around layers with state, noise or nested layers."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

import jaxnorm as jn
from jaxnorm import linen as jnl
from tests.linen.models import Bare, Block, wrapper_of
from tests.modules import (
    KEY,
    WEIGHTS,
    Fields,
    assert_close,
    assert_equal,
    compiled,
    loose,
    normal,
    ramp,
)

X = normal((5, 6))
TARGET = normal((5, 3), seed=1)
STATE: Any = ["batch_stats"]


def changed(name: str, variables: Any) -> Any:
    """The wrapped layer's parameters, with weights normalized by the functions."""
    params = dict(variables["params"])
    flat: Any = traverse_util.flatten_dict(
        {"layer_instance": params.pop("layer_instance")}, sep="/"
    )
    for path, weight in flat.items():
        if not path.endswith("kernel"):
            continue
        if name == "SpectralNorm":
            state = variables["batch_stats"]
            fields = [state[f"{path}/{n}"] for n in jn.SpectralState._fields]
            flat[path], _ = jn.spectral_norm(weight, jn.SpectralState(*fields))
        elif name == "WeightNorm":
            flat[path] = jn.weight_norm(weight, params[f"{path}/scale"])
        else:
            flat[path] = jn.weight_standardization(weight, params[f"{path}/gain"])
    return traverse_util.unflatten_dict(flat, sep="/")


# --- layers with more than a kernel --------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_layer_with_state_noise_and_intermediates(name: str, training: bool) -> None:
    """Output, statistics, random numbers and sown values match the bare layer with normalized weights."""
    wrapper, bare = wrapper_of(name, Block()), Bare(Block())
    call: Fields = {
        "use_running_average": not training,
        "rngs": {"dropout": jax.random.key(3)},
        "mutable": ["batch_stats", "intermediates"],
    }

    def of(key: jax.Array) -> Any:
        variables = wrapper.init(key, X, use_running_average=True)
        stats = variables["batch_stats"]["layer_instance"]
        given = {"params": changed(name, variables), "batch_stats": {"layer_instance": stats}}
        ours = wrapper.apply({k: variables[k] for k in given}, X, **call)
        return ours, bare.apply(given, X, **call), variables

    (y, updated), (expected, bare_updated), variables = compiled(of, KEY)
    assert_close(y, expected, 1e-5)
    assert_close(updated["intermediates"], bare_updated["intermediates"], 1e-5)
    assert len(updated["intermediates"]["layer_instance"]["seen"]) == 1
    stats = updated["batch_stats"]["layer_instance"]
    assert_close(stats, bare_updated["batch_stats"]["layer_instance"], 1e-5)
    same = jax.tree.map(jnp.array_equal, updated["batch_stats"], dict(variables["batch_stats"]))
    assert any(jax.tree.leaves(same)) != training and all(jax.tree.leaves(same)) != training


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_mode_reaches_a_layer_that_takes_it(name: str) -> None:
    """The mode is passed only if it is given, and only to layers that accept it."""
    heard = []

    class Listener(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, use_running_average: str = "nothing") -> jax.Array:
            heard.append(use_running_average)
            return nn.Dense(3)(x)

    for layer in (Listener(), nn.Dense(3)):
        wrapper = wrapper_of(name, layer)
        for mode in (True, False):
            jax.eval_shape(partial(wrapper.init, use_running_average=mode), KEY, X)
            expected = [mode, mode] if isinstance(layer, Listener) else []
            assert heard == expected
            heard.clear()
    update: Fields = {"update_stats": True} if name == "SpectralNorm" else {}
    jax.eval_shape(partial(wrapper_of(name, Listener()).init, **update), KEY, X)
    assert heard == ["nothing", "nothing"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_init_does_not_need_the_mapped_axis(name: str) -> None:
    """A batch norm in the wrapped layer also recognizes ``init``."""
    wrapper = wrapper_of(name, Block(axis_name="unbound"))
    init = partial(wrapper.init, use_running_average=False)
    keys = {"params": KEY, "dropout": KEY}
    variables = jax.eval_shape(init, keys, X)
    apply = partial(wrapper.apply, use_running_average=False, mutable=STATE, rngs={"dropout": KEY})
    with pytest.raises(ValueError, match="unbound"):
        jax.eval_shape(apply, variables, X)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_wrapper_called_twice(name: str) -> None:
    """Two calls share one set of variables; both normalize, and spectral norm takes two steps."""

    class Twice(nn.Module):
        times: int = 2

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layer = wrapper_of(name, nn.Dense(6, use_bias=False))
            for _ in range(self.times):
                x = layer(x, use_running_average=False)
            return x

    def of(key: jax.Array) -> Any:
        variables = Twice().init(key, X)
        once, one = Twice(1).apply(variables, X, mutable=STATE)
        twice, two = Twice(1).apply({**variables, **one}, once, mutable=STATE)
        return (
            variables,
            Twice(1).init(key, X),
            Twice().apply(variables, X, mutable=STATE),
            (twice, two),
        )

    variables, single, found, expected = compiled(of, KEY)
    assert_equal(variables, single)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
@pytest.mark.parametrize("shape", ["Sequential", "field"])
def test_a_layer_made_outside_of_the_wrapped_one(name: str, shape: str) -> None:
    """A layer passed into the wrapped one belongs to the parent in a compact model, with Flax's names."""

    class Around(nn.Module):
        dense: nn.Module

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(2)(self.dense(x))

    class Model(nn.Module):
        wrap: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            dense = nn.Dense(4)
            layer = Around(dense) if shape == "field" else nn.Sequential([dense, nn.relu])
            call = {"update_stats": True} if name == "SpectralNorm" else {}
            return self.wrap(layer)(x, **call)

    ours, theirs = (Model(getattr(system, name)) for system in (jnl, nn))
    with loose():
        expected = jax.eval_shape(theirs.init, KEY, X)
    assert jax.eval_shape(ours.init, KEY, X) == expected


def test_wrappers_in_wrappers() -> None:
    """Spectral norm of a weight-normalized layer skips the kernel's scale, which is a vector."""
    wrapper = jnl.SpectralNorm(jnl.WeightNorm(nn.Dense(3), scale_init=ramp))

    def of(key: jax.Array) -> Any:
        variables = wrapper.init(key, X, update_stats=True)
        y = wrapper.apply(variables, X, update_stats=True, mutable=STATE)[0]
        inner = jnl.WeightNorm(nn.Dense(3))
        return variables, y, inner.apply({"params": variables["params"]["layer_instance"]}, X)

    variables, y, expected = compiled(of, KEY)
    assert_close(y, expected, 1e-5)  # weight norm undoes any scaling by the spectral norm
    assert len(variables["batch_stats"]) == 2


@pytest.mark.parametrize("name", WEIGHTS)
def test_partitioned_parameters(name: str) -> None:
    """A boxed kernel stays boxed, and so is its gradient (Flax's spectral norm raises)."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    wrapper = wrapper_of(name, nn.Dense(3, kernel_init=init))

    def of(key: jax.Array) -> Any:
        variables = wrapper.init(key, X, use_running_average=False)

        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            return wrapper.apply(given, X, use_running_average=True).sum()

        return variables["params"], jax.grad(loss)(variables["params"])

    params, gradients = compiled(of, KEY)
    box = params["layer_instance"]["kernel"]
    assert isinstance(box, nn.Partitioned) and box.names == ("in", "out")
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", [*WEIGHTS, "MagnitudePreserving"])
def test_names_do_not_depend_on_boxes(name: str) -> None:
    """Variables have the same names with and without boxes, and unboxed checkpoints can be used."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    fields = {"use_gain": True} if name == "WeightStandardization" else {}
    boxed, plain = (
        getattr(jnl, name)(layer, **fields)
        for layer in (nn.Dense(3, kernel_init=init), nn.Dense(3))
    )

    def of(key: jax.Array) -> Any:
        variables = boxed.init(key, X, use_running_average=True)
        return variables, *(
            boxed.apply(v, X, use_running_average=True) for v in (variables, nn.unbox(variables))
        )

    variables, *outputs = compiled(of, KEY)
    assert_equal(*outputs)
    expected = jax.eval_shape(lambda key: plain.init(key, X, use_running_average=True), KEY)
    assert jax.tree.structure(nn.unbox(variables)) == jax.tree.structure(expected)


def test_boxed_checkpoints_of_flax() -> None:
    """Flax's WeightNorm names a boxed scale differently; it can be used as it is, or unboxed."""
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    theirs, ours = (of.WeightNorm(nn.Dense(3, kernel_init=init)) for of in (nn, jnl))

    def of(key: jax.Array) -> Any:
        variables = theirs.init(key, X)
        expected = theirs.apply(variables, X)
        return expected, [ours.apply(v, X) for v in (variables, nn.unbox(variables))]

    with loose():
        expected, outputs = compiled(of, KEY)
    for y in outputs:
        assert_close(y, expected, 1e-5)
