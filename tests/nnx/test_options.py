"""Modes, `promote_dtype` and our own options of the NNX norms of activations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals

from jaxnorm import nnx as jnx
from tests.modules import (
    ACTIVATIONS,
    Fields,
    X,
    assert_close,
    assert_equal,
    called,
    compiled,
    flat,
    inits,
    loose,
    moved,
    nnx_norm,
)

STATEFUL = [("BatchNorm", {}), ("InstanceNorm", {"track_running_stats": True})]


# --- training and evaluation ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fields"), STATEFUL)
def test_modes(name: str, fields: Fields) -> None:
    """``eval``, ``train``, ``set_view``, `nnx.view` and the call set the mode; the call takes precedence."""
    layer = nnx_norm(jnx, name, **fields)
    start = flat(layer)

    def stats_moved(module: Any, **call: Any) -> bool:
        nnx.update(layer, nnx.clone(nnx.state(fresh)))
        called(module, lambda m, x: m(x, **call), X)
        return "mean" in moved(start, flat(module))

    fresh = nnx.clone(layer)
    assert stats_moved(layer)
    layer.eval()
    assert not stats_moved(layer) and stats_moved(layer, use_running_average=False)
    layer.train()
    assert stats_moved(layer) and not stats_moved(layer, use_running_average=True)
    viewed = nnx.view(layer, use_running_average=True)
    assert not stats_moved(viewed) and viewed.mean is layer.mean
    assert layer.use_running_average is False
    layer.set_view(use_running_average=True)
    assert not stats_moved(layer)
    layer.set_view()
    assert layer.use_running_average is True


def test_batch_norm_without_running_statistics() -> None:
    """Neither the call's mode nor ``eval`` matters: the batch's own statistics are used as in training."""
    kept = nnx_norm(jnx, "BatchNorm", **inits("BatchNorm"))
    layer = nnx_norm(jnx, "BatchNorm", track_running_stats=False, **inits("BatchNorm"))
    expected = called(kept, lambda m, x: m(x), X)
    for mode in (None, True, False):
        assert_close(called(layer, lambda m, x, u=mode: m(x, u), X), expected, 1e-6)
    layer.eval()
    assert_close(called(layer, lambda m, x: m(x), X), expected, 1e-6)


# --- promote_dtype -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_promote_dtype_is_called_as_flax_calls_it(name: str) -> None:
    """``promote_dtype`` gets the same arrays in the same order as in Flax, so a function for Flax works."""
    given: dict[Any, Any] = {}
    for system in (jnx, nnx):

        def record(arrays: Any, *, dtype: Any = None, system: Any = system) -> Any:
            given[system] = [getattr(a, "shape", None) for a in arrays], dtype
            return arrays

        layer = nnx_norm(system, name, promote_dtype=record, dtype=jnp.bfloat16)
        with loose():
            nnx.eval_shape(lambda m, x: m(x), layer, X)
    assert given[jnx] == given[nnx]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_promote_dtype_decides_the_dtype(name: str) -> None:
    """A function that casts parameters to the input's dtype keeps a bfloat16 result."""

    def of_the_input(arrays: Any, *, dtype: Any = None) -> Any:
        return tuple(None if a is None else a.astype(arrays[0].dtype) for a in arrays)

    for fields, dtype in (({}, jnp.float32), ({"promote_dtype": of_the_input}, jnp.bfloat16)):
        layer = getattr(jnx, name)(32, rngs=nnx.Rngs(0), **fields)
        y = nnx.eval_shape(lambda m, x: m(x), layer, X.astype(jnp.bfloat16))
        assert y.dtype == dtype


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nothing_wide_is_saved(name: str) -> None:
    """With float32 parameters, a bfloat16 input is the only array saved for the backward pass, unwidened."""

    def large(system: Any) -> list[Any]:
        layer = (
            nnx_norm(system, name, use_running_average=False)
            if name == "BatchNorm"
            else nnx_norm(system, name)
        )
        graph, state = nnx.split(layer)

        def loss(state: Any, x: jax.Array) -> Any:
            return nnx.merge(graph, state)(x)

        avals: list[Any] = [
            aval for aval, _ in saved_residuals(loss, state, X.astype(jnp.bfloat16))
        ]
        return [a.dtype for a in avals if a.size == X.size]

    assert large(jnx) == [jnp.bfloat16]
    with loose():
        assert jnp.dtype("float32") in large(nnx)


# --- our own options -----------------------------------------------------------------------------


def test_group_norm_channels_first() -> None:
    """``feature_axes=1`` is the same norm with the axes in another order."""
    last = nnx_norm(jnx, "GroupNorm", num_groups=4, **inits("GroupNorm"))
    first = nnx_norm(
        jnx, "GroupNorm", jnp.moveaxis(X, -1, 1), num_groups=4, feature_axes=1, **inits("GroupNorm")
    )
    y = compiled(lambda x: jnp.moveaxis(first(jnp.moveaxis(x, -1, 1)), 1, -1), X)
    assert_close(y, compiled(last, X), 1e-5)


def test_local_response_norm() -> None:
    """Local response norm has no variables, needs no arguments, and uses every field."""
    layers = [jnx.LocalResponseNorm(), jnx.LocalResponseNorm(32, rngs=nnx.Rngs(0))]
    assert all(flat(layer) == {} for layer in layers)
    plain, same = (compiled(layer, X) for layer in layers)
    assert_equal(plain, same)
    fields: Fields = {"size": 3, "alpha": 0.5, "beta": 2.0, "k": 1.5, "feature_axes": 1}
    padded = np.pad(np.square(X), [(0, 0), (1, 1), (0, 0), (0, 0)])
    energy = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    y = compiled(jnx.LocalResponseNorm(**fields), X)
    np.testing.assert_allclose(y, X / (1.5 + 0.5 / 3 * energy) ** 2.0, rtol=1e-5)
    assert jax.eval_shape(jnx.LocalResponseNorm(dtype=jnp.bfloat16), X).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", [*ACTIVATIONS, "LocalResponseNorm"])
def test_takes_the_call_of_every_norm(name: str) -> None:
    """Norms ignore arguments of batch norm's call that they do not need."""
    layer = nnx_norm(jnx, name)

    def calls(m: Any, x: jax.Array) -> Any:
        return m(x, use_running_average=True, mask=None), m(x, use_running_average=True)

    assert_equal(*called(layer, calls, X))
    if name != "BatchNorm":
        assert_equal(
            called(layer, lambda m, x: m(x, use_running_average=False), X),
            called(layer, lambda m, x: m(x), X),
        )


@pytest.mark.parametrize(
    ("name", "plain", "other"),
    [
        ("BatchNorm", {"momentum": 0.75}, {"momentum": jnp.float32(0.75)}),
        ("BatchNorm", {"axis": (-1,)}, {"axis": [3]}),
        ("LayerNorm", {"reduction_axes": (1, 2)}, {"reduction_axes": [2, 1]}),
        ("GroupNorm", {"reduction_axes": (1, 2, 3)}, {"reduction_axes": [-1, 1, -2]}),
        ("InstanceNorm", {"feature_axes": 3}, {"feature_axes": np.int64(-1)}),
    ],
    ids=lambda a: str(a) if not isinstance(a, str) else a,
)
def test_other_ways_to_write_an_option(name: str, plain: Fields, other: Fields) -> None:
    """Lists, NumPy integers and JAX arrays work like plain values, also under `nnx.jit`."""
    layers = [getattr(jnx, name)(32, rngs=nnx.Rngs(0), **fields) for fields in (plain, other)]
    ys = [nnx.jit(lambda m, x: m(x))(layer, X) for layer in layers]
    assert_close(ys[1], ys[0], 1e-6)
    keys = set(flat(layers[0]))
    assert_close(*({n: flat(layer)[n] for n in keys} for layer in layers), tolerance=1e-6)
