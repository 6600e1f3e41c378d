"""`convert` between models that arrange their arrays differently: heads, stacks, new layers, other names."""

import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl, tools
from tests.tools.folding import applied

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DIM, HEADS = 12, 3
X = RNG.standard_normal((2, 5, DIM)).astype(np.float32)


def normal(*shape: int) -> np.ndarray:
    """Random numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


# --- attention -------------------------------------------------------------------------------------


def attended(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Self-attention as PyTorch computes it from (out, in) weights, heads in one axis; float64."""
    query, key, value = (
        (x @ weights[f"{n}.weight"].T + weights[f"{n}.bias"]).reshape(*x.shape[:2], HEADS, -1)
        for n in ("query", "key", "value")
    )
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(DIM // HEADS)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    y = np.einsum("bhqk,bkhd->bqhd", scores, value).reshape(x.shape)
    return y @ weights["out.weight"].T + weights["out.bias"]


def split_weights() -> dict[str, np.ndarray]:
    """Weights of four dense layers."""
    names = ("query", "key", "value", "out")
    weights = {f"{n}.weight": normal(DIM, DIM) for n in names}
    return weights | {f"{n}.bias": normal(DIM) for n in names}


def fused(split: dict[str, np.ndarray], weight: str, bias: str, out: str) -> dict[str, np.ndarray]:
    """The same with query, key and value in one array, under these names."""
    joined = {
        name: np.concatenate([split[f"{n}.{kind}"] for n in ("query", "key", "value")])
        for name, kind in ((weight, "weight"), (bias, "bias"))
    }
    return joined | {f"{out}.weight": split["out.weight"], f"{out}.bias": split["out.bias"]}


# How libraries write an attention layer called "attn".
ATTENTION = {
    "timm": lambda split: fused(split, "attn.qkv.weight", "attn.qkv.bias", "attn.proj"),
    "torch": lambda split: fused(
        split, "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj"
    ),
    "four layers": lambda split: {f"attn.{name}": array for name, array in split.items()},
}


class Attention(nn.Module):
    """Self-attention in Linen."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Attends."""
        return nn.MultiHeadDotProductAttention(HEADS, name="attn")(x)


class NnxAttention(nnx.Module):
    """Self-attention in NNX."""

    def __init__(self) -> None:
        """Creates the layer."""
        self.attn = nnx.MultiHeadAttention(HEADS, DIM, decode=False, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        """Attends."""
        return self.attn(x)


@pytest.mark.parametrize("library", ATTENTION)
def test_attention(library: str) -> None:
    """Linen and NNX compute what the formula gives for PyTorch's weights, and the way back is exact."""
    split = split_weights()
    state_dict = ATTENTION[library](split)
    wide = {name: array.astype(np.float64) for name, array in split.items()}
    expected = attended(wide, X.astype(np.float64))
    model = Attention()
    variables = tools.convert(state_dict, like=jax.eval_shape(model.init, KEY, X))
    np.testing.assert_allclose(applied(model, variables, jnp.asarray(X)), expected, 1e-4, 1e-5)
    network = tools.convert(state_dict, like=NnxAttention())
    np.testing.assert_allclose(network(jnp.asarray(X)), expected, 1e-4, 1e-5)
    for source in (variables, network):
        back = tools.convert(source, like={n: np.zeros_like(a) for n, a in state_dict.items()})
        assert back.keys() == state_dict.keys()
        for name, array in state_dict.items():
            np.testing.assert_array_equal(back[name], array, err_msg=name)
    again = tools.convert(variables, like=network)
    np.testing.assert_array_equal(again(jnp.asarray(X)), network(jnp.asarray(X)))


def test_attention_in_one_dense_layer() -> None:
    """If both have query, key and value in one layer, it is a dense layer like any other."""
    state_dict = {"attn.qkv.weight": normal(3 * DIM, DIM), "attn.proj.weight": normal(DIM, DIM)}
    like = {
        "attn": {
            "qkv": {"kernel": np.zeros((DIM, 3 * DIM))},
            "proj": {"kernel": np.zeros((DIM, DIM))},
        }
    }
    found = tools.convert(state_dict, like={"params": like})["params"]["attn"]
    np.testing.assert_array_equal(found["qkv"]["kernel"], state_dict["attn.qkv.weight"].T)
    same = tools.convert(state_dict, like={n: np.zeros_like(a) for n, a in state_dict.items()})
    np.testing.assert_array_equal(same["attn.qkv.weight"], state_dict["attn.qkv.weight"])


class Fused(nn.Module):
    """Self-attention with query, key and value in one layer, and then with layers of their own."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Attends twice."""
        qkv = nn.DenseGeneral((3, HEADS, DIM // HEADS), name="first_qkv")(x)
        y = nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        y = nn.Dense(DIM, name="first_proj")(y.reshape(x.shape))
        return nn.MultiHeadDotProductAttention(HEADS, name="second")(y)


@pytest.mark.parametrize("names", [None, {"first_qkv": "first.qkv"}])
def test_attention_in_one_layer_with_an_axis_for_the_heads(names: Any) -> None:
    """A layer that the other model has, too, is not taken apart, whatever becomes of others."""
    split = [split_weights(), split_weights()]
    state_dict = {
        f"{name}.{key}": array
        for name, of_layer in zip(("first", "second"), split, strict=True)
        for key, array in fused(of_layer, "qkv.weight", "qkv.bias", "proj").items()
    }
    wide = [{n: a.astype(np.float64) for n, a in of_layer.items()} for of_layer in split]
    expected = attended(wide[1], attended(wide[0], X.astype(np.float64)))
    like = jax.eval_shape(Fused().init, KEY, X)
    variables = tools.convert(state_dict, like=like, names=names)
    np.testing.assert_allclose(applied(Fused(), variables, jnp.asarray(X)), expected, 1e-4, 1e-5)
    back = tools.convert(variables, like={n: np.zeros_like(a) for n, a in state_dict.items()})
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_a_name_keeps_a_layer_whole() -> None:
    """A fused layer with another name is paired as such in both directions."""
    like: Any = {"attn": {"c_attn": {"kernel": np.zeros((DIM, 3 * DIM))}}}
    like["cross"] = {"query": {"kernel": np.zeros((DIM, HEADS, DIM // HEADS))}}
    state_dict = {"attn.qkv.weight": normal(3 * DIM, DIM), "cross.query.weight": normal(DIM, DIM)}
    names = {"attn/c_attn": "attn.qkv"}
    for given in (names, lambda path: "attn.qkv" if path == "attn/c_attn" else path):
        found: Any = tools.convert(state_dict, like={"params": like}, names=given)
        kernel = found["params"]["attn"]["c_attn"]["kernel"]
        np.testing.assert_array_equal(kernel, state_dict["attn.qkv.weight"].T)
    back = tools.convert(found, like=state_dict, names={"attn.qkv": "attn/c_attn"})
    np.testing.assert_array_equal(back["attn.qkv.weight"], state_dict["attn.qkv.weight"])


def test_query_key_and_value_of_different_sizes() -> None:
    """They are not cut into thirds: with fewer heads for key and value, nothing is lost silently."""
    state_dict = fused(split_weights(), "attn.qkv.weight", "attn.qkv.bias", "attn.proj")
    state_dict["attn.qkv.weight"] = normal(3 * DIM + 1, DIM)
    like = jax.eval_shape(Attention().init, KEY, X)
    with pytest.raises(ValueError, match=r"source's 'attn/qkv' with weight \(37, 12\): nothing"):
        tools.convert(state_dict, like=like)


# --- stacks of layers ------------------------------------------------------------------------------


class Block(nn.Module):
    """A dense layer and a batch norm."""

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, None]:
        """Has the form that `nn.scan` requires."""
        return nn.relu(jnl.BatchNorm(True, name="norm")(nn.Dense(4, name="fc")(x))), None


class Scanned(nn.Module):
    """Three blocks in a loop."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Applies the blocks."""
        axes = {"params": 0, "batch_stats": 0}
        scan = nn.scan(Block, axes, split_rngs={"params": True}, length=3)  # pyright: ignore[reportArgumentType]
        return nn.Dense(2, name="head")(scan(name="blocks")(x, None)[0])


class Unrolled(nn.Module):
    """The same blocks one by one."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Applies the blocks."""
        for i in range(3):
            x = Block(name=f"blocks_{i}")(x)[0]
        return nn.Dense(2, name="head")(x)


ROWS = normal(5, 4)


def moved(variables: Any) -> Any:
    """Variables other than the initial ones."""
    return jax.tree.map(lambda a: a + np.abs(normal(*a.shape)), variables)


def test_stacked_layers() -> None:
    """A stack becomes numbered layers and numbered layers a stack, in Linen and PyTorch's names."""
    stacked = moved(Scanned().init(KEY, ROWS))
    y: Any = Scanned().apply(stacked, ROWS)
    options: Any = {"stacked": ["blocks"]}
    one_by_one = tools.convert(stacked, like=jax.eval_shape(Unrolled().init, KEY, ROWS), **options)
    np.testing.assert_allclose(applied(Unrolled(), one_by_one, jnp.asarray(ROWS)), y, 1e-5)
    back = tools.convert(one_by_one, like=jax.eval_shape(Scanned().init, KEY, ROWS), **options)
    jax.tree.map(np.testing.assert_array_equal, back, stacked)
    state_dict = {}
    for i in range(3):
        params, stats = (stacked[c]["blocks"] for c in ("params", "batch_stats"))
        state_dict |= {
            f"blocks.{i}.fc.weight": params["fc"]["kernel"][i].T,
            f"blocks.{i}.fc.bias": params["fc"]["bias"][i],
            f"blocks.{i}.norm.weight": params["norm"]["scale"][i],
            f"blocks.{i}.norm.bias": params["norm"]["bias"][i],
            f"blocks.{i}.norm.running_mean": stats["norm"]["mean"][i],
            f"blocks.{i}.norm.running_var": stats["norm"]["var"][i],
            f"blocks.{i}.norm.num_batches_tracked": np.array(7),
        }
    state_dict |= {"head.weight": stacked["params"]["head"]["kernel"].T}
    state_dict |= {"head.bias": stacked["params"]["head"]["bias"]}
    state_dict = {name: np.asarray(array) for name, array in state_dict.items()}
    from_torch = tools.convert(state_dict, like=stacked, **options)
    jax.tree.map(np.testing.assert_array_equal, from_torch, stacked)
    to_torch = tools.convert(stacked, like=state_dict, **options)
    jax.tree.map(np.testing.assert_array_equal, to_torch, state_dict)


class NnxBlock(nnx.Module):
    """A dense layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layer."""
        self.fc = nnx.Linear(4, 4, rngs=rngs)


class NnxStack(nnx.Module):
    """Three of them in one object."""

    def __init__(self) -> None:
        """Creates the stack."""
        self.blocks = nnx.vmap(NnxBlock)(nnx.Rngs(0).split(3))


def test_stacked_layers_in_nnx() -> None:
    """The same for a stack made by `nnx.vmap`."""
    state_dict = {f"layers.{i}.fc.weight": normal(4, 4) for i in range(3)}
    state_dict |= {f"layers.{i}.fc.bias": normal(4) for i in range(3)}
    found = tools.convert(
        state_dict, like=NnxStack(), stacked=["blocks"], names={"blocks": "layers"}
    )
    for i in range(3):
        kernel = found.blocks.fc.kernel[...][i]
        np.testing.assert_array_equal(kernel, state_dict[f"layers.{i}.fc.weight"].T)
    back = tools.convert(found, like=state_dict, stacked=["blocks"], names={"layers": "blocks"})
    jax.tree.map(np.testing.assert_array_equal, back, state_dict)


def test_stacks_of_another_length() -> None:
    """Missing and additional layers are named."""
    state_dict = {f"blocks.{i}.fc.weight": normal(4, 4) for i in range(4)}
    like = {"params": {"blocks": {"fc": {"kernel": np.zeros((3, 4, 4))}}}}
    with pytest.raises(ValueError, match=r"source's 'blocks/3/fc' with weight \(4, 4\): nothing"):
        tools.convert(state_dict, like=like, stacked=["blocks"])
    shorter = {name: array for name, array in state_dict.items() if ".3." not in name}
    tools.convert(shorter, like=like, stacked="blocks")  # one name
    with pytest.raises(ValueError, match="stacked must name layers of like or source; got 'block'"):
        tools.convert(state_dict, like=like, stacked=["block"])


# --- new layers, single arrays, other names ----------------------------------------------------------


def test_keep() -> None:
    """A new head keeps its values, whatever the source has there: the usual way to fine-tune."""
    state_dict = {
        "fc.weight": normal(4, 3),
        "head.weight": normal(1000, 4),
        "head.bias": normal(1000),
    }
    like: Any = {
        "params": {
            "fc": {"kernel": normal(3, 4)},
            "head": {"kernel": normal(4, 10), "bias": normal(10)},
            "new": {"scale": normal(4)},
        }
    }
    found = tools.convert(state_dict, like=like, keep=lambda path: path in ("head", "new"))
    np.testing.assert_array_equal(found["params"]["fc"]["kernel"], state_dict["fc.weight"].T)
    for name in ("head", "new"):
        jax.tree.map(np.testing.assert_array_equal, found["params"][name], like["params"][name])
    with pytest.raises(ValueError, match=r"'new' with scale \(4,\): no 'new' in source"):
        tools.convert(state_dict, like=like, keep="head")
    new = {**state_dict, "other.weight": normal(2)}
    back = tools.convert(like, like=new, keep="[!f]*", names={"other": "new"})
    np.testing.assert_array_equal(back["fc.weight"], like["params"]["fc"]["kernel"].T)
    for name in ("head.weight", "head.bias", "other.weight"):
        np.testing.assert_array_equal(back[name], new[name])


def test_keep_by_pytorchs_names() -> None:
    """Dots are as good as slashes, and a pattern can name single arrays, in Flax's or PyTorch's terms."""
    state_dict = {"fc.0.weight": normal(4, 3), "fc.0.bias": normal(4)}
    like: Any = {"params": {"fc": {"0": {"kernel": normal(3, 4), "bias": normal(4)}}}}
    layer = like["params"]["fc"]["0"]
    for keep, kept in {
        "fc.0": ("kernel", "bias"),
        "fc/0": ("kernel", "bias"),
        "fc.0.weight": ("kernel",),
        "fc/0/kernel": ("kernel",),
        "*.bias": ("bias",),
    }.items():
        found = tools.convert(state_dict, like=like, keep=keep)["params"]["fc"]["0"]
        for role, value in {
            "kernel": state_dict["fc.0.weight"].T,
            "bias": state_dict["fc.0.bias"],
        }.items():
            np.testing.assert_array_equal(found[role], layer[role] if role in kept else value)
        back = tools.convert(like, like=state_dict, keep=keep.replace("kernel", "weight"))
        for role, name in {"kernel": "weight", "bias": "bias"}.items():
            value = state_dict[f"fc.0.{name}"] if role in kept else layer[role].T
            np.testing.assert_array_equal(back[f"fc.0.{name}"], value)


def test_keep_more_or_less_than_the_source_has() -> None:
    """Arrays that only one of the two layers has do not matter."""
    like: Any = {"params": {"fc": {"kernel": normal(3, 4)}, "head": {"bias": normal(2)}}}
    for name in ("weight", "bias"):
        state_dict = {"fc.weight": normal(4, 3), f"head.{name}": normal(5)}
        found = tools.convert(state_dict, like=like, keep="head")
        np.testing.assert_array_equal(
            found["params"]["head"]["bias"], like["params"]["head"]["bias"]
        )


def test_single_arrays() -> None:
    """An array can have a name of its own, such as the scale that ConvNeXt keeps in its block."""
    state_dict = {"blocks.0.gamma": normal(4), "blocks.0.fc.weight": normal(4, 3)}
    like: Any = {
        "params": {"block": {"fc": {"kernel": normal(3, 4)}, "layer_scale": {"scale": normal(4)}}}
    }
    names = {"block": "blocks.0", "block/layer_scale/scale": "blocks.0.gamma"}
    found = tools.convert(state_dict, like=like, names=names)["params"]["block"]
    np.testing.assert_array_equal(found["layer_scale"]["scale"], state_dict["blocks.0.gamma"])
    np.testing.assert_array_equal(found["fc"]["kernel"], state_dict["blocks.0.fc.weight"].T)
    back = {"blocks.0": "block", "blocks.0.gamma": "block/layer_scale/scale"}
    again = tools.convert({"params": {"block": found}}, like=state_dict, names=back)
    jax.tree.map(np.testing.assert_array_equal, again, state_dict)
    with pytest.raises(ValueError, match="no 'blocks/0' in source"):
        tools.convert({"blocks.1.gamma": normal(4)}, like=like, names=names)


def test_a_parameter_called_gamma() -> None:
    """The same name on both sides comes before Keras's meaning of it."""
    state_dict = {"blk.gamma": normal(4), "blk.beta": normal(4), "blk.fc.weight": normal(1, 4)}
    like = {"gamma": np.zeros(4), "beta": np.zeros(4), "fc": {"kernel": np.zeros((4, 1))}}
    found = tools.convert(state_dict, like={"params": {"blk": like}})["params"]["blk"]
    for name in ("gamma", "beta"):
        np.testing.assert_array_equal(found[name], state_dict[f"blk.{name}"])
    both = {"blk.weight": normal(1, 4), "blk.gamma": normal(4), "blk.bias": normal(1)}
    with_kernel = {"kernel": np.zeros((4, 1)), "gamma": np.zeros(4), "bias": np.zeros(1)}
    dense = tools.convert(both, like={"params": {"blk": with_kernel}})["params"]["blk"]
    np.testing.assert_array_equal(dense["kernel"], both["blk.weight"].T)
    np.testing.assert_array_equal(dense["gamma"], both["blk.gamma"])
    back = tools.convert({"params": {"blk": found}}, like=state_dict)
    jax.tree.map(np.testing.assert_array_equal, back, state_dict)


def test_names_of_keras() -> None:
    """Keras has Flax's layout and other names for the arrays of norms."""
    norm = {
        "gamma": normal(4),
        "beta": normal(4),
        "moving_mean": normal(4),
        "moving_variance": normal(4),
    }
    source = {"params": {"norm": norm, "fc": {"kernel": normal(3, 4), "bias": normal(4)}}}
    like = {
        "params": {
            "norm": {"scale": np.zeros(4), "bias": np.zeros(4)},
            "fc": source["params"]["fc"],
        },
        "batch_stats": {"norm": {"mean": np.zeros(4), "var": np.zeros(4)}},
    }
    found = tools.convert(source, like=like)
    arrays = {**found["params"]["norm"], **found["batch_stats"]["norm"]}
    for ours, theirs in zip(("scale", "bias", "mean", "var"), norm, strict=True):
        np.testing.assert_array_equal(arrays[ours], norm[theirs])


def test_axes_of_size_one_in_front() -> None:
    """Some libraries keep the parameters of norms as (1, 1, 1, C), and a dense layer as a convolution."""
    state_dict = {"norm.weight": normal(4), "fc.weight": normal(5, 4)}
    like = {"norm": {"scale": np.zeros((1, 1, 1, 4))}, "fc": {"kernel": np.zeros((1, 1, 4, 5))}}
    found = tools.convert(state_dict, like={"params": like})
    np.testing.assert_array_equal(
        found["params"]["norm"]["scale"][0, 0, 0], state_dict["norm.weight"]
    )
    np.testing.assert_array_equal(found["params"]["fc"]["kernel"][0, 0], state_dict["fc.weight"].T)
    jax.tree.map(np.testing.assert_array_equal, tools.convert(found, like=state_dict), state_dict)
    as_conv = {"norm.weight": state_dict["norm.weight"], "fc.weight": normal(5, 4, 1, 1)}
    dense = {"norm": {"scale": np.zeros(4)}, "fc": {"kernel": np.zeros((4, 5))}}
    found = tools.convert(as_conv, like={"params": dense})
    np.testing.assert_array_equal(
        found["params"]["fc"]["kernel"], as_conv["fc.weight"][..., 0, 0].T
    )
    jax.tree.map(np.testing.assert_array_equal, tools.convert(found, like=as_conv), as_conv)


# --- padding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ({"kernel_size": (3, 3), "strides": 2}, "((1, 1), (1, 1))"),
        ({"kernel_size": (7, 7), "strides": (2, 2)}, "((3, 3), (3, 3))"),
        ({"kernel_size": (3,), "strides": 2, "kernel_dilation": 3}, "((3, 3),)"),  # a window of 7
        ({"kernel_size": (3, 3), "strides": 1}, None),
        ({"kernel_size": (1, 1), "strides": 2}, None),
        ({"kernel_size": (2, 2), "strides": 2}, None),
        ({"kernel_size": (4, 4), "strides": 2}, None),
        ({"kernel_size": (3, 3), "strides": 2, "padding": ((1, 1), (1, 1))}, None),
    ],
)
def test_uneven_padding(options: Any, padding: str | None) -> None:
    """A strided convolution that pads differently from PyTorch's is named, with PyTorch's padding."""
    model = nnx.Sequential(nnx.Conv(2, 2, **options, rngs=nnx.Rngs(0)))
    window = options["kernel_size"]
    state_dict = {"layers.0.weight": normal(2, 2, *window), "layers.0.bias": normal(2)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = tools.convert(state_dict, like=model)
        tools.convert(network, like=state_dict)
        tools.convert(network, like=model)  # without PyTorch there is no difference
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == (0 if padding is None else 2)
    assert all(t.startswith("layers/0 has a stride") and f"padding={padding}." in t for t in texts)
