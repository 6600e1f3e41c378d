"""`convert` without other libraries: layouts against NumPy, exact round trips, invalid input."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.models import CNN
from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.tools.convert_models import (
    FLATTENED,
    IMAGES,
    TRANSPOSED,
    Everything,
    EverythingNNX,
    StateDict,
    assert_same,
    randomized,
    shapes_of,
    state_dict_of_everything,
)

ARGUMENTS: Any = {"transposed": TRANSPOSED, "channels_last": FLATTENED}


@pytest.fixture(scope="module")
def variables() -> Any:
    """Random variables of `Everything`, with sigma computed from PyTorch's u and v."""
    drawn = randomized(shapes_of(Everything()))
    state = drawn["batch_stats"]["SpectralNorm_0"]
    u = state["sn/kernel/u"].astype(np.float64)
    state["sn/kernel/sigma"] = np.float32(np.linalg.norm(drawn["params"]["sn"]["kernel"] @ u[0]))
    return drawn


def test_state_dict_from_linen(variables: Any) -> None:
    """Every array matches the one written by hand; a count that Flax does not have is unchanged."""
    expected = state_dict_of_everything(variables)
    like = {name: np.zeros_like(value) for name, value in expected.items()}
    like["instance.num_batches_tracked"] = expected["instance.num_batches_tracked"]
    arguments = {**ARGUMENTS, "names": {"stem.0": "stem_0"}}  # same result as without names
    found = tools.convert(variables, like=like, **arguments)
    v = "sn.parametrizations.weight.0._v"
    np.testing.assert_allclose(found.pop(v), expected.pop(v), rtol=1e-6)
    assert_same(found, expected)


def test_linen_from_state_dict(variables: Any) -> None:
    """The way back is exact, works from shapes alone, and gives JAX arrays."""
    state_dict = state_dict_of_everything(variables)
    found = tools.convert(state_dict, like=shapes_of(Everything()), **ARGUMENTS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    sigma = found["batch_stats"]["SpectralNorm_0"]["sn/kernel/sigma"]
    expected = variables["batch_stats"]["SpectralNorm_0"]["sn/kernel/sigma"]
    np.testing.assert_allclose(sigma, expected, rtol=1e-5)
    found["batch_stats"]["SpectralNorm_0"]["sn/kernel/sigma"] = expected
    assert_same(found, variables)


def test_round_trips(variables: Any) -> None:
    """Linen to NNX to Linen and PyTorch to NNX to PyTorch are exact; NNX knows its transposed layers."""
    model = EverythingNNX(nnx.Rngs(0))
    there = tools.convert(variables, like=model)
    assert_same(tools.convert(there, like=variables), variables)
    state_dict = state_dict_of_everything(variables)
    there = tools.convert(state_dict, like=model, channels_last=FLATTENED)
    back = tools.convert(there, like=state_dict, channels_last=FLATTENED)
    v = "sn.parametrizations.weight.0._v"
    np.testing.assert_allclose(back.pop(v), state_dict.pop(v), rtol=1e-6)
    assert_same(back, state_dict)


def test_the_model_computes_the_same(variables: Any) -> None:
    """Outputs of Linen and NNX agree, and the given model does not change, random streams included."""
    model = EverythingNNX(nnx.Rngs(0))
    before = [np.asarray(a) for a in jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngState)))]
    converted = tools.convert(variables, like=model)
    converted.eval()
    y = jax.jit(Everything().apply)(variables, IMAGES)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(converted, IMAGES), y, rtol=1e-5)
    after = [np.asarray(a) for a in jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngState)))]
    assert_same(before, after)
    assert converted.dropout.rngs is not model.dropout.rngs


def test_against_the_formulas() -> None:
    """Convolution, batch norm, flattening and a dense layer follow PyTorch's definitions in float64."""
    rng = np.random.default_rng(0)
    shapes = {"conv.weight": (4, 3, 2, 2), "conv.bias": (4,), "fc.weight": (2, 36)}
    norm = {f"bn.{n}": (4,) for n in ("weight", "bias", "running_mean", "running_var")}
    sd = {name: rng.uniform(0.5, 1.5, shape) for name, shape in (shapes | norm).items()}
    x = rng.normal(size=(5, 3, 4, 4))
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, sd["conv.weight"])
    at = (slice(None), None, None)
    y = y + sd["conv.bias"][at] - sd["bn.running_mean"][at]
    y = y / np.sqrt(sd["bn.running_var"] + 1e-5)[at] * sd["bn.weight"][at] + sd["bn.bias"][at]
    y = y.reshape(5, -1) @ sd["fc.weight"].T

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(4, (2, 2), padding="VALID", name="conv", param_dtype=jnp.float64)(x)
            x = jnl.BatchNorm(True, param_dtype=jnp.float64, name="bn")(x)
            x = x.reshape(5, -1)
            return nn.Dense(2, use_bias=False, name="fc", param_dtype=jnp.float64)(x)

    with jax.enable_x64(True):
        images = jnp.asarray(x.transpose(0, 2, 3, 1))
        like = shapes_of(Model(), images)
        found = tools.convert(sd, like=like, channels_last={"fc": (4, 3, 3)})
        ours: Any = Model().apply(found, images)
    # Flax's running statistics are float32.
    np.testing.assert_allclose(ours, y, rtol=1e-5)


def test_norms_after_a_flattening() -> None:
    """Vectors of (C, H, W) are transposed too, flat or not, if the argument is given."""
    sizes = (2, 3, 4)
    flat, whole = (
        np.arange(24.0, dtype=np.float32),
        np.arange(24.0, dtype=np.float32).reshape(sizes),
    )
    sd = {"bn.weight": flat, "bn.bias": flat, "ln.weight": whole}
    like = {
        "params": {
            "bn": {"scale": np.zeros(24, np.float32), "bias": np.zeros(24, np.float32)},
            "ln": {"scale": np.zeros((3, 4, 2), np.float32)},
        }
    }
    found = tools.convert(sd, like=like, channels_last={"bn": sizes, "ln": sizes})
    moved = whole.transpose(1, 2, 0)
    np.testing.assert_array_equal(found["params"]["ln"]["scale"], moved)
    np.testing.assert_array_equal(found["params"]["bn"]["bias"], moved.ravel())
    back = tools.convert(found, like=sd, channels_last={"bn": sizes, "ln": sizes})
    assert_same(back, sd)


class Reused(nn.Module):
    """A residual network that calls one layer twice; the norms are Flax's own."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (N, 10)."""
        conv = nn.Conv(3, (3, 3), use_bias=False)
        for _ in range(2):
            x = x + nn.relu(nn.BatchNorm(not train)(conv(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class MLP(nn.Module):
    """Layers of different sizes with automatic names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns shape (N, 2)."""
        for features in (12, 5):
            x = nn.relu(nn.BatchNorm(True)(nn.Dense(features)(x)))
        return nn.Dense(2)(x)


def state_dict_of(variables: Any, names: dict[str, str]) -> StateDict:
    """PyTorch's names and layouts of convolutions, dense layers and batch norms, in the order of names."""
    found = {}
    as_in_torch = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
    for path, name in names.items():
        for collection in ("params", "batch_stats"):
            layer = variables[collection]
            for part in path.split("/"):
                layer = layer.get(part, {})
            for role, value in layer.items():
                if role == "kernel":
                    axes = (*range(value.ndim - 1, value.ndim - 3, -1), *range(value.ndim - 2))
                    found[f"{name}.weight"] = value.transpose(axes)
                else:
                    found[f"{name}.{as_in_torch.get(role, role)}"] = value
    return found


BLOCKS = {
    f"NormalizedConv_{i}/{ours}": f"blocks.{i}.{theirs}"
    for i in range(4)
    for ours, theirs in (("Conv_0", "conv"), ("BatchNorm_0", "norm"))
}
NAMES = {
    "cifar": {"Conv_0": "stem", **BLOCKS, "Dense_0": "head"},
    "reused": {"Conv_0": "conv", "BatchNorm_0": "a", "BatchNorm_1": "b", "Dense_0": "fc"},
    "mlp": {"Dense_0": "0", "BatchNorm_0": "1", "Dense_1": "3", "BatchNorm_1": "4", "Dense_2": "6"},
}


def model_of(name: str) -> Any:
    """Random variables of a model."""
    cnn = CNN(widths=(8, 8), stem_width=8)
    match name:
        case "cifar":
            shapes = jax.eval_shape(lambda x: cnn.init(jax.random.key(0), x, train=True), IMAGES)
        case "reused":
            shapes = shapes_of(Reused())
        case _:
            shapes = shapes_of(MLP(), IMAGES[:, 0, 0])
    return randomized(shapes)


@pytest.mark.parametrize("name", NAMES)
def test_models(name: str) -> None:
    """With names, or a function, conversion is exact in both directions; without, it may be an error."""
    variables, names = model_of(name), NAMES[name]
    state_dict = state_dict_of(variables, names)
    found = tools.convert(state_dict, like=variables, names=names)
    assert_same(found, variables)
    assert_same(tools.convert(state_dict, like=variables, names=names.__getitem__), variables)
    back = {theirs: ours for ours, theirs in names.items()}
    assert_same(tools.convert(found, like=state_dict, names=back), state_dict)
    if name == "mlp":  # all its layers have different shapes
        assert_same(tools.convert(state_dict, like=variables), variables)
        return
    with pytest.raises(ValueError, match="no 'Conv_0' in source") as raised:
        tools.convert(state_dict, like=variables)
    assert f"source's '{names['Conv_0']}' with " in str(raised.value)


def test_separators(caplog: pytest.LogCaptureFixture) -> None:
    """Names may have other separators if that leaves only one meaning; messages say what was paired."""
    square = {"kernel": jnp.zeros((2, 2))}  # the same shape twice, so that names must tell
    state_dict = {"blocks.0.1.mlp.fc1.weight": np.ones((2, 2)), "head.fc.weight": np.ones((2, 2))}
    like: Any = {"params": {"blocks_0_1": {"mlp_fc1": square}, "head_fc": square}}
    with caplog.at_level("DEBUG", "jaxnorm"):
        found = tools.convert(state_dict, like=like)
    assert jax.tree.all(jax.tree.map(lambda a: (a == 1).all(), found))
    assert [record.getMessage() for record in caplog.records] == [
        "convert: 2 layers from source, 0 kept",
        "convert: blocks_0_1/mlp_fc1 from blocks/0/1/mlp/fc1",
        "convert: head_fc from head/fc",
    ]
    back = tools.convert(found, like=state_dict)
    assert back.keys() == state_dict.keys()

    twice = {"params": {"a_b": square, "a": {"b": square}}}
    with pytest.raises(ValueError, match=r"'a_b' with kernel .*: no 'a_b' in source"):
        tools.convert({"a.b.weight": np.ones((2, 2)), "c.weight": np.ones((2, 2))}, like=twice)
    exact = {"a.b.weight": np.ones((2, 2)), "a_b.weight": np.full((2, 2), 2.0)}
    found = tools.convert(exact, like=twice)["params"]
    assert found["a"]["b"]["kernel"][0, 0] == 1 and found["a_b"]["kernel"][0, 0] == 2


def test_names_of_beginnings() -> None:
    """A name may be a prefix, also for a model inside another one."""
    sd = {"module.net.0.fc.weight": np.ones((3, 2)), "module.other.weight": np.ones((1, 3))}
    like = {
        "params": {"a": {"fc": {"kernel": np.zeros((2, 3))}}, "b": {"kernel": np.zeros((3, 1))}}
    }
    found = tools.convert(sd, like=like, names={"a": "module.net.0", "b": "module.other"})
    assert found["params"]["b"]["kernel"].all()
    like = {"params": {"net_0": {"fc": like["params"]["a"]["fc"]}, "other": like["params"]["b"]}}
    assert tools.convert(sd, like=like, names={"": "module"})["params"]["other"]["kernel"].all()
    tied = tools.convert({"a.weight": np.ones((2, 3))}, like=sd_like(), names={"b": "a"})
    assert tied["params"]["b"]["embedding"].all() and tied["params"]["a"]["kernel"].all()


def sd_like() -> Any:
    """A dense layer that shares its weight with an embedding."""
    return {"params": {"a": {"kernel": np.zeros((3, 2))}, "b": {"embedding": np.zeros((2, 3))}}}


def test_old_wrappers() -> None:
    """Supports weight_g and weight_v, weight_orig and weight_u, from before PyTorch's parametrizations."""
    v, g = np.random.default_rng(0).normal(size=(3, 2)), np.arange(1.0, 4)
    like = {"params": {"layer_instance": {"kernel": v.T * 0}, "layer_instance/kernel/scale": g * 0}}
    old = {"weight_g": g[:, None], "weight_v": v}
    found = tools.convert(old, like=like)
    np.testing.assert_array_equal(found["params"]["layer_instance"]["kernel"], v.T)
    np.testing.assert_array_equal(found["params"]["layer_instance/kernel/scale"], g)
    assert_same(tools.convert(found, like=old), old)
    left, sizes, right = np.linalg.svd(v)
    old = {"sn.weight_orig": v, "sn.weight_u": left[:, 0], "sn.weight_v": right[0]}
    state = {
        "layer_instance/kernel/u": np.zeros((1, 3)),
        "layer_instance/kernel/sigma": np.zeros(()),
    }
    kernel = {"layer_instance": {"kernel": v.T * 0}}
    like = {"params": {"sn": kernel}, "batch_stats": {"sn": state}}
    found = tools.convert(old, like=like)
    np.testing.assert_allclose(
        found["batch_stats"]["sn"]["layer_instance/kernel/sigma"], sizes[0], rtol=1e-12
    )
    back = tools.convert(found, like=old)
    np.testing.assert_allclose(back["sn.weight_v"], right[0], rtol=1e-12)
    without = {name: value for name, value in old.items() if name != "sn.weight_u"}
    with pytest.raises(ValueError, match="like's batch_stats/sn/layer_instance/kernel/u"):
        tools.convert(without, like=like)
    found["batch_stats"]["sn"]["layer_instance/kernel/u"] = np.ones((1, 7))
    with pytest.raises(ValueError, match=r"sn.weight_u \(3,\): got"):
        tools.convert(found, like=old)
    found["batch_stats"]["sn"]["layer_instance/kernel/u"] = np.ones(())
    with pytest.raises(ValueError, match=r"sn.weight_u \(3,\): got"):
        tools.convert(found, like=old)
    assert_same(back["sn.weight_u"], left[:, 0])


def test_dtypes_are_those_of_like() -> None:
    """Values are widened exactly or rounded once; NaN and infinity survive; bfloat16 becomes float32."""
    values = np.array([1.0, np.nan, np.inf, 1 / 3], np.float32)
    like = {"params": {"n": {"scale": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}}}
    half = tools.convert({"n.weight": values}, like=like)
    assert_same(half["params"]["n"]["scale"], jnp.asarray(values).astype(jnp.bfloat16))
    back = tools.convert(half, like={"n.weight": half["params"]["n"]["scale"]})["n.weight"]
    assert_same(back, np.asarray(half["params"]["n"]["scale"]).astype(np.float32))


def test_numbers() -> None:
    """A variable may be a Python number, which becomes an array."""
    found = tools.convert({"params": {"n": 3}}, like={"params": {"n": jnp.zeros((), jnp.int32)}})
    assert found["params"]["n"].dtype == jnp.int32 and found["params"]["n"] == 3
    found = tools.convert(found, like={"params": {"n": 0}})
    assert found["params"]["n"] == 3


def test_nothing_is_shared() -> None:
    """Writing to a result does not change the source, nor the other way round."""
    sd = {"n.weight": np.ones(4, np.float32)}
    like = {"params": {"n": {"scale": np.zeros(4, np.float32)}}}
    found = tools.convert(sd, like=like)
    on_device = tools.convert(sd, like=jax.tree.map(jnp.asarray, like))
    back = tools.convert(on_device, like=sd)
    sd["n.weight"][:] = 7
    back["n.weight"][:] = 8  # results are writable
    assert (found["params"]["n"]["scale"] == 1).all() and not like["params"]["n"]["scale"].any()
    assert (on_device["params"]["n"]["scale"] == 1).all()


def test_options_of_nnx_models() -> None:
    """A model of shapes becomes one of arrays, and shared layers stay shared."""

    class Shared(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
            self.b = self.a
            self.norm = jnx.BatchNorm(2, rngs=rngs)

    abstract = nnx.eval_shape(lambda: Shared(nnx.Rngs(0)))
    stats = {f"norm.{n}": np.ones(2) for n in ("weight", "bias", "running_mean", "running_var")}
    model = tools.convert({"a.weight": np.eye(2), **stats}, like=abstract)
    assert model.a is model.b and isinstance(model.a.kernel[...], jax.Array)
    assert isinstance(abstract.a.kernel.get_raw_value(), jax.ShapeDtypeStruct)


def test_boxes() -> None:
    """Partitioned parameters in Linen keep their boxes."""
    init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    like = nn.Dense(3, use_bias=False, kernel_init=init).init(jax.random.key(0), IMAGES[0, 0])
    found = tools.convert({"weight": np.zeros((3, 3), np.float32)}, like=like)
    assert found["params"]["kernel"].names == (None, "model")
    assert not found["params"]["kernel"].value.any()


def write_safetensors(path: Path, header: bytes, data: bytes) -> None:
    """Writes the format by hand."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_files(tmp_path: Path) -> None:
    """Reads PyTorch's names from .npz and .safetensors; the latter also with bfloat16, or without arrays."""
    like = {"params": {"n": {"scale": np.zeros(2, np.float32), "bias": np.zeros(2, np.float32)}}}
    sd = {"n.weight": np.array([1, 2], np.float32), "n.bias": np.array([3, 4], np.float32)}
    np.savez(tmp_path / "a.npz", allow_pickle=False, **sd)
    expected = tools.convert(sd, like=like)
    assert_same(tools.convert(str(tmp_path / "a.npz"), like=like), expected)
    header = (
        b'{"__metadata__":{"format":"pt"},"n.weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
        b'"n.bias":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}   '
    )
    data = sd["n.weight"].astype(jnp.bfloat16).tobytes() + sd["n.bias"].tobytes()
    write_safetensors(tmp_path / "a.safetensors", header, data)
    assert_same(tools.convert(tmp_path / "a.safetensors", like=like), expected)
    write_safetensors(tmp_path / "b.safetensors", header, data[:-1])
    write_safetensors(tmp_path / "c.safetensors", header.replace(b"[4,12]", b"[-8,0]"), data)
    write_safetensors(tmp_path / "d.safetensors", header[:-9], data)
    (tmp_path / "e.safetensors").write_bytes(b"{}")
    write_safetensors(tmp_path / "f.safetensors", b"[1]", b"")
    write_safetensors(tmp_path / "g.safetensors", header.replace(b"F32", b"Q32"), data)
    for name in "bcdefg":
        with pytest.raises(ValueError, match="must be a complete safetensors file"):
            tools.convert(tmp_path / f"{name}.safetensors", like=like)
    with pytest.raises(FileNotFoundError):
        tools.convert("nowhere.safetensors", like=like)


def test_safetensors_of_the_library(tmp_path: Path) -> None:
    """Files from the safetensors library are read like the library does."""
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    rng = np.random.default_rng(0)
    kinds = ("float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool")
    sd = {f"n.{kind}": rng.normal(size=(2, 3)).astype(kind) for kind in kinds}
    library.save_file(sd, tmp_path / "a.safetensors", {"format": "np"})
    like = {"params": {"n": {kind: np.zeros((2, 3), kind) for kind in kinds}}}
    found = tools.convert(tmp_path / "a.safetensors", like=like)["params"]["n"]
    assert_same(found, {kind: sd[f"n.{kind}"] for kind in kinds})


class Trap:
    """An object that fails the test if it is unpickled."""

    def __reduce__(self) -> Any:
        """Does what a malicious pickle does."""
        return pytest.fail, ("a pickle was executed",)


def test_pickles_are_refused(tmp_path: Path) -> None:
    """Pickles are refused by name, before they are opened, and so are pickles in an .npz."""
    like = {"params": {"n": {"scale": np.zeros(2)}}}
    for suffix in ("pt", "pth", "ckpt", "bin", "pkl", "pickle"):
        with pytest.raises(ValueError, match=f"got a.{suffix}, a pickle"):
            tools.convert(tmp_path / f"a.{suffix}", like=like)
    objects = np.empty(1, object)
    objects[0] = Trap()
    np.savez(tmp_path / "a.npz", allow_pickle=True, **{"n.weight": objects})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        tools.convert(tmp_path / "a.npz", like=like)


GOOD = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
LIKE: Any = {"params": {"fc": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}}
BAD: dict[str, tuple[StateDict, list[str]]] = {
    "missing": (
        {"fc.weight": np.ones((3, 2))},
        ["like's params/fc/bias (3,): not in source's 'fc' with weight (3, 2)"],
    ),
    "extra": (
        {**GOOD, "fc.mask": np.ones(3), "head.weight": np.ones((4, 3))},
        ["source's fc.mask (3,): nothing in like", "source's 'head' with weight (4, 3): nothing"],
    ),
    "typo": (
        {name.replace("fc", "fcc"): value for name, value in GOOD.items()}
        | {"x.weight": np.ones(2)},
        ["like's 'fc' with bias (3,), ", "source's 'fcc' with weight (3, 2), bias (3,): nothing"],
    ),
    "shape": (
        {**GOOD, "fc.weight": np.ones((2, 3))},
        ["like's params/fc/kernel (2, 3): got fc.weight (2, 3), which becomes (3, 2)"],
    ),
    "rank": ({**GOOD, "fc.bias": np.ones((3, 1))}, ["fc/bias (3,): got fc.bias (3, 1)"]),
    "scalar": ({**GOOD, "fc.bias": np.ones(())}, ["fc/bias (3,): got fc.bias ()"]),
    "complex": (
        {**GOOD, "fc.bias": np.ones(3) * 1j},
        ["fc/bias of float64: got fc.bias of complex128"],
    ),
    "integers": (
        {**GOOD, "fc.bias": np.ones(3, int)},
        ["fc/bias of float64: got fc.bias of int64"],
    ),
    "empty": ({}, ["like's 'fc' with bias (3,), kernel (2, 3): no 'fc' in source"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_state_dicts(case: str) -> None:
    """All mistakes are listed, and nothing is modified."""
    source, lines = BAD[case]
    before = {name: value.copy() for name, value in source.items()}
    with pytest.raises(ValueError, match="every array in source must match one in like") as raised:
        tools.convert(source, like=LIKE)
    assert all(line in str(raised.value) for line in lines), str(raised.value)
    assert "pass names=" in str(raised.value)
    assert_same(source, before)
    assert not LIKE["params"]["fc"]["kernel"].any()


def test_by_shape_only_where_there_is_one_way() -> None:
    """With two layers of the same shape, or a single matching name, nothing is guessed."""
    like = {
        "params": {"Dense_0": {"kernel": np.zeros((2, 3))}, "Dense_1": {"kernel": np.zeros((3, 4))}}
    }
    source = {"one.weight": np.ones((4, 3)), "two.weight": np.ones((3, 2))}
    assert tools.convert(source, like=like)["params"]["Dense_1"]["kernel"].all()
    same = {"one.weight": np.ones((3, 2)), "two.weight": np.ones((3, 2))}
    alike = {"params": {name: {"kernel": np.zeros((2, 3))} for name in ("Dense_0", "Dense_1")}}
    half = {"Dense_0.weight": np.ones((3, 2)), "two.weight": np.ones((4, 3))}
    for bad, wanted in ((same, alike), (half, like)):
        with pytest.raises(ValueError, match="no 'Dense_1' in source"):
            tools.convert(bad, like=wanted)


def test_count_for_all_channels() -> None:
    """PyTorch has a single number, we have one per channel; without channels it is 0."""
    sd = {"running_mean": np.ones(2), "running_var": np.ones(2), "num_batches_tracked": np.array(5)}
    stats = {"mean": np.zeros(2), "var": np.zeros(2)}
    counted = {"batch_stats": {**stats, "count": np.zeros(2, np.int32)}}
    found = tools.convert(sd, like=counted)
    assert_same(found["batch_stats"]["count"], np.array([5, 5], np.int32))
    back = tools.convert(found, like={**sd, "num_batches_tracked": np.array(0)})
    assert back["num_batches_tracked"] == 5
    uncounted = tools.convert(sd, like={"batch_stats": stats})
    assert_same(back, tools.convert(uncounted, like=sd))
    del sd["num_batches_tracked"]
    with pytest.raises(ValueError, match=r"batch_stats/count \(2,\): not in source's ''"):
        tools.convert(sd, like=counted)
