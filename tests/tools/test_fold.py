"""`fold` gives the same results without the arithmetic of batch norms."""

import tracemalloc
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
from jax.sharding import NamedSharding, PartitionSpec

from examples.models import CNN, ResNet20
from jaxnorm import linen as jnl, nnx as jnx, tools
from jaxnorm.tools._fold._affine import into_layer_before
from tests.tools.folding import (
    NORMS,
    Layers,
    Model,
    applied,
    assert_same,
    data,
    in_nnx,
    linen,
    random_arrays,
    shapes,
)

IMAGE, ROW = (2, 6, 5, 4), (3, 7, 4)
MASK = (np.arange(3 * 3 * 4 * 6).reshape(3, 3, 4, 6) % 3).astype(np.float32)
# For both module systems: the kind of layer, the shape of its input, and its options.
LAYERS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "conv": ("Conv", IMAGE, {}),
    "without bias": ("Conv", IMAGE, {"use_bias": False}),
    "strided": ("Conv", IMAGE, {"strides": 2, "padding": "VALID"}),
    "dilated": ("Conv", IMAGE, {"kernel_dilation": 2}),
    "of dilated input": ("Conv", IMAGE, {"input_dilation": 2, "padding": 1}),
    "grouped": ("Conv", IMAGE, {"feature_group_count": 2, "use_bias": False}),
    "circular": ("Conv", IMAGE, {"padding": "CIRCULAR"}),
    "masked": ("Conv", IMAGE, {"mask": MASK}),
    "one image": ("Conv", IMAGE[1:], {}),
    "transposed": ("ConvTranspose", IMAGE, {"strides": (2, 2)}),
    "transposed, other kernel": ("ConvTranspose", IMAGE, {"transpose_kernel": True}),
    "transposed, circular": ("ConvTranspose", IMAGE, {"padding": "CIRCULAR", "use_bias": False}),
    "dense": ("Dense", ROW, {}),
    "dense, without bias": ("Dense", ROW, {"use_bias": False}),
    "sums over two axes": ("DenseGeneral", IMAGE, {"axis": (-2, -1)}),
    "embedding": ("Embed", (3, 7), {}),
}
AFTER: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "conv": ("Conv", IMAGE, {"padding": "VALID"}),
    "no padding": ("Conv", IMAGE, {"padding": ((0, 0), 0), "use_bias": False}),
    "dilated": ("Conv", IMAGE, {"padding": "VALID", "kernel_dilation": 2}),
    "grouped": ("Conv", IMAGE, {"padding": "VALID", "feature_group_count": 2}),
    "circular": ("Conv", IMAGE, {"padding": "CIRCULAR"}),
    "reflected": ("Conv", IMAGE, {"padding": "REFLECT", "strides": 2}),
    "single pixels": ("Conv", IMAGE, {"kernel_size": (1, 1), "strides": 2}),
    "dense": ("Dense", ROW, {}),
    "dense, without bias": ("Dense", ROW, {"use_bias": False}),
    "several axes out": ("DenseGeneral", ROW, {"features": (3, 2), "use_bias": False}),
}


def linen_layer(kind: str, shape: tuple[int, ...], **options: Any) -> Any:
    """The Linen layer, with 6 channels."""
    if kind == "Embed":
        return nn.Embed(5, 6, **options)
    options = {"features": 6, **options}
    return getattr(nn, kind)(**({"kernel_size": (3, 3)} if "Conv" in kind else {}) | options)


def nnx_layer(kind: str, shape: tuple[int, ...], **options: Any) -> Any:
    """The same layer in NNX."""
    if kind == "Embed":
        return nnx.Embed(5, 6, rngs=nnx.Rngs(0), **options)
    features, axis = options.pop("features", 6), options.get("axis", -1)
    kind = {"Dense": "Linear", "DenseGeneral": "LinearGeneral"}.get(kind, kind)
    inputs = tuple(shape[a] for a in axis) if isinstance(axis, tuple) else shape[-1]
    if "Conv" in kind:
        options = {"kernel_size": (3, 3), **options}
    return getattr(nnx, kind)(inputs, features, rngs=nnx.Rngs(0), **options)


def inputs(kind: str, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The input of such a layer."""
    return jnp.arange(21).reshape(shape) % 5 if kind == "Embed" else data(*shape, dtype=dtype)


@pytest.mark.parametrize("case", LAYERS)
def test_into_the_layer_before(case: str) -> None:
    """Every kind of layer absorbs the norm after it, with scales of both signs and zero."""
    kind, shape, options = LAYERS[case]
    x = inputs(kind, shape)
    model = Layers((linen_layer(kind, shape, **options), jnl.BatchNorm(True)))
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables)
    assert folded.pairs == {"layers_1": "layers_0"} and folded.refused == {}
    assert list(folded.variables) == ["params"] and list(folded.variables["params"]) == ["layers_0"]
    assert_same(folded, model, x, variables)
    other = in_nnx(
        nnx.Sequential(nnx_layer(kind, shape, **options), nnx.BatchNorm(6, rngs=nnx.Rngs(0)))
    )
    folded = tools.fold(other, x)
    assert folded.pairs == {"layers/1": "layers/0"} and folded.variables is None
    assert not nnx.state(folded.model, nnx.BatchStat)
    assert_same(folded, other, x)


@pytest.mark.parametrize("case", AFTER)
def test_into_the_layer_after(case: str) -> None:
    """A layer that reads the norm's output, without zero padding, absorbs it."""
    kind, shape, options = AFTER[case]
    x = inputs(kind, shape)
    model = Layers((jnl.BatchNorm(True), linen_layer(kind, shape, **options)))
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables)
    assert folded.pairs == {"layers_0": "layers_1"}
    assert_same(folded, model, x, variables)
    other = in_nnx(
        nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx_layer(kind, shape, **options))
    )
    folded = tools.fold(other, x)
    assert folded.pairs == {"layers/0": "layers/1"}
    assert_same(folded, other, x)


@pytest.mark.parametrize("axis", [-1, 2, (-2, -1), -2, (2, 3)], ids=str)
def test_several_axes_of_channels(axis: Any) -> None:
    """The norm may be over all or some of the axes that a dense layer creates."""
    x = data(2, 5, 4)
    model = Layers((nn.DenseGeneral((3, 6), use_bias=False), jnl.BatchNorm(True, axis=axis)))
    variables = linen(model, x)
    assert_same(tools.fold(model, x, variables=variables), model, x, variables)


@pytest.mark.parametrize("case", [*LAYERS, *(f"after: {case}" for case in AFTER)][::3])
def test_float64(case: str) -> None:
    """Results in float64 are accurate to the last digits."""
    with jax.enable_x64(True):
        after = case.startswith("after")
        kind, shape, options = AFTER[case[7:]] if after else LAYERS[case]
        if "mask" in options:
            options = {"mask": MASK.astype(np.float64)}
        options = {**options, "param_dtype": jnp.float64}
        x, norm = inputs(kind, shape, jnp.float64), jnl.BatchNorm(True, param_dtype=jnp.float64)
        layer = linen_layer(kind, shape, **options)
        model = Layers((norm, layer) if after else (layer, norm))
        variables = linen(model, x, dtype=jnp.float64)
        folded = tools.fold(model, x, variables=variables)
        assert {a.dtype for a in jax.tree.leaves(folded.variables)} == {jnp.dtype(jnp.float64)}
        assert folded.difference < 1e-12
        assert_same(folded, model, x, variables)


def test_folding_rounds_once() -> None:
    """Folded arrays are the float64 results, rounded to the dtype of the layer at the end."""
    x = data(5, 7)
    model = Layers((nn.Dense(64), jnl.BatchNorm(True)))
    variables = linen(model, x)
    folded: Any = tools.fold(model, x, variables=variables).variables
    layer, scale_and_bias, stats = jax.tree.map(
        np.float64,
        (*variables["params"].values(), variables["batch_stats"]["layers_1"]),
    )
    factor = scale_and_bias["scale"] / np.sqrt(stats["var"] + 1e-5)
    kernel = layer["kernel"] * factor
    bias = (layer["bias"] - stats["mean"]) * factor + scale_and_bias["bias"]
    got = folded["params"]["layers_0"]
    np.testing.assert_array_equal(got["kernel"], np.float32(kernel))
    np.testing.assert_allclose(got["bias"], np.float32(bias), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_bfloat16_kernels(dtype: Any) -> None:
    """The kernel keeps its dtype, and so does the result, which a float32 norm promotes."""
    x = data(*IMAGE, dtype=jnp.bfloat16)
    conv = nn.Conv(6, (3, 3), use_bias=False, param_dtype=jnp.bfloat16)
    model = Layers((conv, jnl.BatchNorm(True, dtype=dtype)))
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables)
    assert {a.dtype for a in jax.tree.leaves(folded.variables)} == {jnp.dtype(jnp.bfloat16)}
    y, z = applied(model, variables, x), applied(folded.model, folded.variables, x)
    assert y.dtype == z.dtype == (dtype or jnp.float32)
    np.testing.assert_allclose(np.asarray(z, float), np.asarray(y, float), atol=0.05 * abs(y).max())


@pytest.mark.parametrize("system", NORMS)
def test_dtype_of_an_nnx_norm(system: str, users_promotion: None) -> None:
    """In Flax's NNX, statistics promote the result even without scale and bias."""
    norm = NORMS[system][1](6, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    layer = nnx.Linear(4, 6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model, x = in_nnx(nnx.Sequential(layer, norm)), data(3, 4)
    folded = tools.fold(model, x)
    assert model(x).dtype == (jnp.float32 if system == "flax" else jnp.bfloat16)
    assert folded.model(x).dtype == model(x).dtype
    assert folded.difference < 0.02 * float(abs(model(x)).max())


@pytest.mark.sampled
@pytest.mark.parametrize(
    "options",
    [{"use_scale": False}, {"use_bias": False}, {"epsilon": 0.5}, {"momentum": 0.5}, {"axis": 3}],
    ids=str,
)
@pytest.mark.parametrize("system", NORMS)
def test_options_of_the_norm(system: str, options: dict[str, Any]) -> None:
    """Scale and bias, if present, are folded together with the norm's epsilon."""
    x = data(*IMAGE)
    model = Layers((nn.Conv(6, (3, 3)), NORMS[system][0](True, **options)))
    variables = linen(model, x)
    assert_same(tools.fold(model, x, variables=variables), model, x, variables)


def test_count_goes_with_the_norm() -> None:
    """A norm that counts its batches is removed completely."""
    x = data(*ROW)
    model = Layers((nn.Dense(6), jnl.BatchNorm(True, momentum=None)))
    variables: Any = model.init(jax.random.key(0), x)
    assert "count" in variables["batch_stats"]["layers_1"]
    assert list(tools.fold(model, x, variables=variables).variables) == ["params"]


@pytest.mark.sampled
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", None])
@pytest.mark.parametrize("adds", [False, True])
def test_activation_and_residual_stay(activation: str | None, adds: bool) -> None:
    """Activation and residual come after the norm and are computed as before."""
    x = data(2, 6, 5, 6)

    def block(norm: Any) -> Callable[[jax.Array], jax.Array]:
        return lambda x: norm(nn.Conv(6, (3, 3))(x), **({"residual": x} if adds else {}))

    model = Model(lambda x: block(jnl.BatchNorm(True, activation=activation))(x))
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables)
    y, z = applied(model, variables, x), applied(folded.model, folded.variables, x)
    np.testing.assert_allclose(z, y, atol=2e-5)


def test_activation_and_residual_stay_in_nnx() -> None:
    """The same holds in NNX, and the flag and mask of a batch norm are still accepted."""

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(6, 6, (3, 3), rngs=rngs)
            self.norm = jnx.BatchNorm(6, activation="relu", rngs=rngs)

        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            mask = jnp.ones((2, 1, 1, 1), bool)
            return self.norm(self.conv(x), not train, mask=mask, residual=x)

    model, x = in_nnx(Block(nnx.Rngs(0))), data(2, 6, 5, 6)
    folded = tools.fold(model, x)
    np.testing.assert_allclose(folded.model(x), model(x), atol=2e-5)
    np.testing.assert_array_equal(folded.model(x, train=True), folded.model(x))


def pooled(x: jax.Array) -> jax.Array:
    """Flax's max pooling."""
    return nn.max_pool(x, (2, 2), (2, 2), "SAME")


BETWEEN: dict[str, Callable[[jax.Array], jax.Array]] = {
    "max pool": pooled,
    "of maxima": lambda x: jnp.maximum(x[:, ::2, :4], x[:, 1::2, 1:]),
    "global": lambda x: x.max((1, 2)),
    "merged axes": lambda x: x.reshape(-1, x.shape[-1]),
    "one of them": lambda x: x[:, 0],
    "jitted": lambda x: jax.jit(lambda x: x[:, 1:])(x),
    "remembered": lambda x: jax.checkpoint(lambda x: x[:, 1:])(x),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_between_the_two(between: str) -> None:
    """Operations may move values within their channel, or take maxima with a positive scale."""
    x = data(*IMAGE)
    model = Layers((nn.Conv(6, (3, 3)), BETWEEN[between], jnl.BatchNorm(True)))
    variables = linen(model, x, positive=True)
    folded = tools.fold(model, x, variables=variables)
    assert folded.pairs == {"layers_2": "layers_0"}
    assert_same(folded, model, x, variables)


def test_layer_that_remembers_nothing() -> None:
    """Rematerialized layers are folded, also a single one, which gets a bias."""
    x = data(*IMAGE)
    model = Layers((nn.remat(nn.Conv)(6, (3, 3), use_bias=False), jnl.BatchNorm(True)))
    variables = linen(model, x)
    assert_same(tools.fold(model, x, variables=variables), model, x, variables)


def test_two_norms_into_one_layer() -> None:
    """A layer can absorb one norm before it and one after it."""
    x = data(*IMAGE)
    model = Layers((jnl.BatchNorm(True), nn.Conv(6, (3, 3), padding="VALID"), jnl.BatchNorm(True)))
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables)
    assert folded.pairs == {"layers_0": "layers_1", "layers_2": "layers_1"}
    assert_same(folded, model, x, variables)


class MLP(nnx.Module):
    """Dense layers with batch norms."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates three layers of each."""
        self.layers = nnx.List([nnx.Linear(n, 6, rngs=rngs) for n in (4, 6, 6)])
        self.norms = nnx.List([nnx.BatchNorm(6, rngs=rngs) for _ in range(3)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers in sequence."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return x


def test_mlp_that_is_jitted() -> None:
    """Jitted code is inspected, without reusing earlier traces."""
    model, x = in_nnx(MLP(nnx.Rngs(0))), data(3, 4)
    run = nnx.jit(lambda model, x: model(x))
    expected = run(model, x)
    for _ in range(2):
        folded = tools.fold(model, x, run=run)
        assert folded.pairs == {f"norms/{i}": f"layers/{i}" for i in range(3)}
        np.testing.assert_allclose(folded.model(x), expected, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("norm", [jnl.BatchNorm, nn.BatchNorm])
@pytest.mark.parametrize(
    "network", [CNN(widths=(8, 8), stem_width=4), ResNet20()], ids=["CNN", "ResNet20"]
)
def test_networks(network: Any, norm: Any) -> None:
    """The networks of the examples have no batch norm left."""
    if norm is nn.BatchNorm:
        norm = lambda: lambda x, use_running_average, mask: nn.BatchNorm()(x, use_running_average)  # noqa: E731
    model, x = network.clone(norm=norm), data(2, 16, 16, 3)
    variables = random_arrays(
        jax.jit(partial(model.init, train=False))(jax.random.key(0), x), positive=True
    )
    folded = tools.fold(model, x, variables=variables, run=lambda model, x: model(x, train=False))
    evaluate = jax.jit(partial(folded.model.apply, train=False))
    y = jax.jit(partial(model.apply, train=False))(variables, x)
    assert folded.difference < 1e-4 * float(abs(y).max())
    np.testing.assert_allclose(evaluate(folded.variables, x), y, 1e-4, 1e-4 * float(abs(y).max()))
    program = evaluate.lower(folded.variables, x).as_text()
    assert "sqrt" not in program and list(folded.variables) == ["params"]


class Reused(nn.Module):
    """A residual network that uses one block twice."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the shape of x with 8 channels."""
        x = nn.relu(nn.BatchNorm(name="stem_norm")(nn.Conv(8, (3, 3), name="stem")(x), True))
        conv, norm = nn.Conv(8, (3, 3), name="conv"), nn.BatchNorm(True, name="norm")
        for _ in range(2):
            x = nn.relu(x + norm(conv(x)))
        return x


def test_partial() -> None:
    """A norm that is used twice stays and gives the reason; the rest is folded."""
    model, x = Reused(), data(*IMAGE)
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables, partial=True)
    assert folded.pairs == {"stem_norm": "stem"}
    assert folded.refused == {"norm": "norm is called 2 times"}
    assert folded.variables["batch_stats"] == {"norm": variables["batch_stats"]["norm"]}
    y, z = applied(model, variables, x), applied(folded.model, folded.variables, x)
    np.testing.assert_allclose(z, y, atol=1e-5 * abs(y).max())
    only = tools.fold(model, x, variables=variables, where="stem_*")
    assert only.pairs == folded.pairs and only.refused == {}


@pytest.mark.parametrize("frozen", [False, True])
def test_input_is_untouched(frozen: bool) -> None:
    """The model and its variables do not change, and the result has the same mapping type."""
    x = data(*ROW)
    model = Layers((nn.Dense(6), jnl.BatchNorm(True)))
    variables = linen(model, x)
    given = freeze(variables) if frozen else variables
    before = jax.tree.map(np.array, variables)
    folded = tools.fold(model, x, variables=given)
    assert type(folded.variables) is type(given)
    assert shapes(dict(given)) == shapes(before)
    jax.tree.map(np.testing.assert_array_equal, dict(variables), before)
    other = in_nnx(
        nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.BatchNorm(6, rngs=nnx.Rngs(0)))
    )
    graph, state = nnx.split(other)
    state = jax.tree.map(np.array, state)
    tools.fold(other, x)
    after_graph, after = nnx.split(other)
    assert after_graph == graph
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_module_is_a_value() -> None:
    """Equal folds are equal, hash alike, and share compiled programs."""
    x = data(*ROW)
    model = Layers((nn.Dense(6), jnl.BatchNorm(True)))
    variables = linen(model, x)
    one, two = (tools.fold(model, x, variables=variables).model for _ in range(2))
    assert one == two and hash(one) == hash(two) and one != model
    assert shapes(one.init(jax.random.key(0), x)) == shapes(
        tools.fold(model, x, variables=variables).variables
    )


def test_sharded() -> None:
    """Variables stay sharded, and sharded batches give the results of one device to the last digits."""
    with jax.enable_x64(True):
        check_sharded()


def check_sharded() -> None:
    """Compares in float64, since in float32 the order of sums matters."""
    mesh = jax.make_mesh((4, 2), ("batch", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = data(8, 6, 5, 4, dtype=jnp.float64)
    model = Layers(
        (
            nn.Conv(6, (3, 3), use_bias=False, param_dtype=jnp.float64),
            jnl.BatchNorm(True, param_dtype=jnp.float64),
        )
    )
    variables = linen(model, x, dtype=jnp.float64)
    expected = applied(model, variables, x)

    def placed(array: jax.Array) -> jax.Array:
        axes = (*[None] * (array.ndim - 1), "model")
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    sharded = jax.tree.map(placed, variables)
    batch = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    folded = tools.fold(model, batch, variables=sharded)
    kernel = folded.variables["params"]["layers_0"]["kernel"]
    assert kernel.sharding == sharded["params"]["layers_0"]["kernel"].sharding
    assert folded.difference < 1e-12
    y = jax.jit(folded.model.apply)(folded.variables, batch)
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_boxes_of_metadata_stay() -> None:
    """A kernel with names for its axes keeps them."""
    named = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    model, x = Layers((nn.Dense(6, kernel_init=named), jnl.BatchNorm(True))), data(*ROW)
    variables: Any = model.init(jax.random.key(0), x)
    folded = tools.fold(model, x, variables=variables)
    assert folded.variables["params"]["layers_0"]["kernel"].names == (None, "model")


def test_other_collections_stay() -> None:
    """Other collections may hold arrays with the same names."""
    model, x = Layers((nn.Dense(6), jnl.BatchNorm(True))), data(*ROW)
    variables = linen(model, x)
    others = {
        "vectors": {"layers_0": {"kernel": jnp.zeros(3)}, "layers_1": {"scale": jnp.zeros(3)}}
    }
    folded = tools.fold(model, x, variables={**variables, **others})
    assert folded.variables["vectors"] == others["vectors"]
    assert folded.difference < 1e-5


class Noisy(nn.Module):
    """Adds noise."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the shape of x."""
        return x + jax.random.normal(self.make_rng("noise"), x.shape)


def test_random_numbers() -> None:
    """Models may draw random numbers, which are the same before and after."""
    model, x = Layers((nn.Dense(6), jnl.BatchNorm(True), Noisy())), data(*ROW)
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    variables = random_arrays(model.init(keys, x))
    folded = tools.fold(model, x, variables=variables, rngs={"noise": jax.random.key(2)})
    assert folded.difference < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_kernels_are_rounded_once(dtype: str) -> None:
    """The product is that of float64, rounded to the dtype of the kernel."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 4, 500)).astype(jnp.dtype(dtype))
    factor, offset = rng.normal(size=(2, 500))
    layer = {"kernel": kernel}
    new = into_layer_before(layer, factor, offset, transposed=False, dtype=kernel.dtype)["kernel"]
    wide = kernel.astype(np.promote_types(kernel.dtype, np.float64))
    assert new.dtype == kernel.dtype
    np.testing.assert_array_equal(new, (wide * factor).astype(kernel.dtype))


def test_memory() -> None:
    """Folding makes one copy of a kernel in NumPy, and none in float64."""
    model = nn.Sequential([nn.Dense(2048), nn.BatchNorm(use_running_average=True)])
    x = jnp.ones((2, 2048))
    variables: Any = model.init(jax.random.key(0), x)
    tools.fold(model, x, variables=variables)  # what is traced now is kept
    tracemalloc.start()
    try:
        tools.fold(model, x, variables=variables)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * variables["params"]["layers_0"]["kernel"].nbytes
