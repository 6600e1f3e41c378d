"""The NNX norms of activations behave like Flax's in everything that a model can see."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import nnx as jnx
from tests.modules import (
    ACTIVATIONS,
    CASES,
    COTANGENT,
    MASK,
    OPTIONS,
    RANDOM,
    Fields,
    X,
    assert_close,
    called,
    features_of,
    flat,
    inits,
    loose,
    moved,
    nnx_norm,
    normal,
    own,
)

# Flax's NNX norms accept only one feature axis, and their group norm is wrong for other axes than the
# default ones.
OF_FLAX = [
    (name, option)
    for name, option in CASES
    if isinstance(features_of(name, **OPTIONS[name][option]), int)
    and not (name == "GroupNorm" and "axes" in OPTIONS[name][option])
    and not (name == "GroupNorm" and "reduction_axes" in OPTIONS[name][option])
]
OWN = {
    "BatchNorm": ["unbiased", "track_running_stats", "virtual_batch_size", "activation", "save_as"],
    "LayerNorm": ["activation"],
    "RMSNorm": ["scale_offset", "fraction", "scale_after_cast", "activation"],
    "GroupNorm": ["feature_axes", "activation"],
    "InstanceNorm": [
        *("track_running_stats", "use_running_average", "momentum", "unbiased", "activation")
    ],
}
STATEFUL = [("BatchNorm", {}), ("InstanceNorm", {"track_running_stats": True})]


def pair(name: str, **fields: Any) -> list[Any]:
    """Our layer and Flax's, with the same arguments and random streams."""
    return [nnx_norm(system, name, **fields) for system in (jnx, nnx)]


def state_of(module: nnx.Module) -> Any:
    """The types, shapes and dtypes of all variables by path."""
    return {
        path: (type(v), v[...].shape, v[...].dtype)
        for path, v in nnx.to_flat_state(nnx.state(module))
    }


# --- the classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_signature_begins_with_that_of_flax(name: str) -> None:
    """Flax's arguments come in Flax's order with Flax's defaults; ours come after and are keyword-only."""
    ours, theirs = getattr(jnx, name), getattr(nnx, name)
    assert own(ours.__init__, theirs.__init__) == OWN[name] and ours.__name__ == name
    added = ["residual"] if name == "BatchNorm" else ["use_running_average"]
    assert own(ours.__call__, theirs.__call__) == added
    if name == "BatchNorm":
        assert own(ours.set_view, theirs.set_view) == []


@pytest.mark.parametrize(("name", "option"), OF_FLAX)
def test_attributes_are_those_of_flax(name: str, option: str) -> None:
    """All public attributes of Flax's layer are present and have the same values."""
    fields: Fields = {"dtype": jnp.bfloat16, "axis_name": "i", "use_fast_variance": False}
    ours, theirs = pair(name, **OPTIONS[name][option], **fields)
    for attribute, value in vars(theirs).items():
        if not attribute.startswith("_") and not isinstance(value, nnx.Variable):
            attribute = attribute.replace("feature_axis", "feature_axes")
            assert getattr(ours, attribute) == value, attribute


def test_group_norm_by_position() -> None:
    """``GroupNorm(features, groups, size)`` works: these are the only positional arguments."""
    for system in (jnx, nnx):
        layer = system.GroupNorm(6, None, 2, rngs=nnx.Rngs(0))
        assert layer.group_size == 2


# --- variables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "option"), OF_FLAX)
def test_initial_variables_are_those_of_flax(name: str, option: str) -> None:
    """Paths, types, shapes and dtypes match Flax's; the same Rngs give the same values and counts."""
    param_dtype = "bfloat16" if option == "default" else "float32"
    random: Fields = {key: RANDOM[key] for key in inits(name)}
    fields: Fields = {**random, **OPTIONS[name][option], "param_dtype": jnp.dtype(param_dtype)}
    layers, counts = [], []
    for system in (jnx, nnx):
        rngs = nnx.Rngs(3)
        features = features_of(name, **OPTIONS[name][option])
        layers.append(getattr(system, name)(features, rngs=rngs, **fields))
        counts.append(int(rngs.default.count[...]))
    assert state_of(layers[0]) == state_of(layers[1])
    assert moved(*map(flat, layers)) == set()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_metadata_reaches_the_variables(name: str) -> None:
    """``scale_metadata`` and ``bias_metadata`` reach only their own variable."""
    metadata: Fields = {"scale_metadata": {"tag": 1, "mine": True}}
    if name != "RMSNorm":
        metadata["bias_metadata"] = {"tag": 2}
    for layer in pair(name, **metadata):
        assert layer.scale.get_metadata("tag") == 1 and layer.scale.get_metadata("mine")
        if name != "RMSNorm":
            assert layer.bias.get_metadata("tag") == 2 and not layer.bias.has_metadata("mine")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_sharding_metadata_shards(name: str) -> None:
    """``out_sharding`` shards the parameter over the mesh, as in Flax's layers."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        layer = nnx_norm(jnx, name, scale_metadata={"out_sharding": ("model",)})
    assert layer.scale[...].sharding.spec == jax.P("model")


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "RMSNorm", "InstanceNorm"])
def test_number_of_features_as_numpy_has_it(name: str) -> None:
    """``np.prod(shape)`` is not a Python int, but Flax accepts it."""
    for system in (nnx, jnx):
        layer = getattr(system, name)(np.int64(32), rngs=nnx.Rngs(0))
        assert layer.scale.shape == (32,)


@pytest.mark.parametrize(("name", "fields"), STATEFUL)
def test_no_variables_where_none_are_kept(name: str, fields: Fields) -> None:
    """Disabled parameters and statistics are not in the state."""
    options: Fields = {**fields, "use_bias": False, "use_scale": False}
    assert set(flat(nnx_norm(jnx, name, **options))) == {"mean", "var"}
    options["track_running_stats"] = False
    assert flat(nnx_norm(jnx, name, **options)) == {}
    assert set(flat(nnx_norm(jnx, name, **fields, momentum=None))) >= {"mean", "var", "count"}


# --- results -------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "option"), OF_FLAX)
def test_checkpoints_of_flax_give_flax_answers(name: str, option: str) -> None:
    """Loaded with Flax's state, a layer gives Flax's results and gradients, masked or not, in both modes."""
    fields = {**OPTIONS[name][option], **(inits(name) if option != "default" else {})}
    ours, theirs = pair(name, **fields)
    if name == "BatchNorm":
        theirs.mean[...], theirs.var[...] = 0.1 * normal((32,)), 1 + normal((32,)) ** 2
    nnx.update(ours, nnx.state(theirs))

    def outcome(module: Any, x: jax.Array) -> Any:
        calls: list[Fields] = [{}, {"mask": MASK}]
        if name == "BatchNorm":
            calls.append({"use_running_average": True})

        def gradients(call: Fields) -> Any:
            def loss(module: Any, x: jax.Array) -> Any:
                y = module(x, **call)
                return (y * COTANGENT).sum() / 10, y

            return nnx.grad(loss, argnums=(0, 1), has_aux=True)(module, x)

        return jax.tree.leaves([gradients(call) for call in calls])

    assert_close(*(called(layer, outcome, X) for layer in (ours, theirs)), tolerance=1e-4)
    assert_close(flat(ours), flat(theirs), 1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16", "float16", "int32"])
def test_result_dtype_is_that_of_flax(x_dtype: str, dtype: str | None, param_dtype: str) -> None:
    """The result has ``dtype``, or else the promoted dtype of input and existing parameters."""
    x = jax.ShapeDtypeStruct(X.shape, jnp.dtype(x_dtype))
    for name in ACTIVATIONS:
        for option in ("default", list(OPTIONS[name])[-1]):
            if (name, option) not in OF_FLAX:
                continue
            fields: Fields = {**OPTIONS[name][option], "dtype": dtype, "param_dtype": param_dtype}
            ours, theirs = pair(name, **fields)
            found = nnx.eval_shape(lambda m, x: m(x), ours, x)
            if name == "BatchNorm" and dtype is None:
                # In Flax's NNX, float32 statistics widen the result; ours matches Linen, as do all norms.
                switches = {k: v for k, v in fields.items() if k not in ("momentum", "axis")}
                theirs = nnx_norm(nnx, "LayerNorm", **switches)
            with loose():
                assert found == nnx.eval_shape(lambda m, x: m(x), theirs, x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_running_statistics_are_not_rounded(dtype: Any) -> None:
    """Running statistics stay float32, also for evaluation in half precision (Flax casts them)."""
    for name, fields in STATEFUL:
        layer = nnx_norm(jnx, name, dtype=dtype, param_dtype=dtype, use_scale=False, **fields)
        called(layer, lambda m, x: m(x), 1000 + X)
        assert layer.mean[...].dtype == layer.var[...].dtype == jnp.float32
        layer.mean[...], layer.var[...] = jnp.full(32, 1001.7), jnp.full(32, 1e5)
        layer.eval()
        x = jnp.full((1, 1, 1, 32), 1008.0, dtype)
        y = called(layer, lambda m, x: m(x), x)
        exact = (float(x[0, 0, 0, 0]) - 1001.7) / np.sqrt(1e5 + layer.epsilon)
        assert y.dtype == dtype
        np.testing.assert_allclose(np.asarray(y, float), exact, rtol=float(jnp.finfo(dtype).eps))


def test_complex_parameters_have_a_complex_mean() -> None:
    """A layer with ``param_dtype=complex64`` accepts complex input and stores a complex mean."""
    layer: Any = jnx.BatchNorm(32, param_dtype=jnp.complex64, momentum=0.0, rngs=nnx.Rngs(0))
    x = jax.lax.complex(X, 1 + COTANGENT)
    called(layer, lambda m, x: m(x), x)
    np.testing.assert_allclose(layer.mean[...], x.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    assert layer.var[...].dtype == jnp.float32
