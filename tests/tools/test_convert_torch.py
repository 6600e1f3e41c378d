"""`convert` and `torch_options` against PyTorch: outputs and statistics, for layers and whole models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import resnet18
from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.norms.torch_layers import assert_close, evaluated, make
from tests.norms.torch_rows import LAYERS, Peer, Row
from tests.tools.convert_models import (
    FLATTENED,
    TRANSPOSED,
    Everything,
    EverythingNNX,
    assert_same,
    randomized,
    shapes_of,
    state_dict_of_everything,
)

torch: Any = pytest.importorskip(
    "torch", minversion="2.13", reason="no PyTorch, or one without all of these arguments"
)
EVERY_ROW = [pytest.param(peer, row, id=row.name) for peer in LAYERS for row in peer.rows]


@pytest.mark.parametrize(("peer", "row"), EVERY_ROW)
def test_every_norm(peer: Peer, row: Row) -> None:
    """Options and state of a layer convert to Linen and NNX and back, for training and evaluation."""
    rng = np.random.default_rng(0)
    layer = make(torch, row, rng)
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, buffer.shape)))
        else:
            buffer.fill_(3)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    channels = {"BatchNorm": "axis", "GroupNorm": "feature_axes", "InstanceNorm": "feature_axes"}
    options = tools.torch_options(layer)
    options |= {channels[peer.ours]: 1} if peer.ours in channels else {}
    options |= {"feature_axes": 1} if peer.ours == "LocalResponseNorm" else {}
    if peer.ours == "RMSNorm" and not state and layer.eps is None:
        options["epsilon"] = float(np.finfo(np.float64).eps)  # dtype unknown without weights
    x = rng.normal(size=row.shape)
    layer.train()
    y_train = layer(torch.from_numpy(x)).detach().numpy()
    after = {name: value.numpy() for name, value in layer.state_dict().items()}
    y_eval = evaluated(torch, layer, x)

    with jax.enable_x64(True):
        wide = {} if peer.ours == "LocalResponseNorm" else {"param_dtype": jnp.float64}
        tracked = {"force_float32_reductions": False} if "momentum" in options else {}
        module = getattr(jnl, peer.ours)(**options, **wide, **tracked)
        like = jax.eval_shape(
            lambda x: module.init(jax.random.key(0), x, use_running_average=False), x
        )
        variables = tools.convert(state, like=like) if like else {}
        y, new = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        variables = {**variables, **new}
        ours = module.apply(variables, x, use_running_average=True)
        assert_close((y, ours), (y_train, y_eval), row.name)
        if variables:
            back = tools.convert(variables, like=after)
            statistics = {n for n in after if n != "num_batches_tracked"}
            for name in statistics:
                np.testing.assert_allclose(back[name], after[name], rtol=1e-9, err_msg=name)
            unmoved = tools.convert(tools.convert(state, like=like), like=state)
            assert_same(unmoved, {name: value.numpy() for name, value in state.items()})

        features = row.options.get("normalized_shape") or row.shape[1]
        first = {} if peer.ours == "LocalResponseNorm" else {"num_features": features}
        twin = getattr(jnx, peer.ours)(**first, **options, **wide, rngs=nnx.Rngs(0))
        if state:
            twin = tools.convert(state, like=twin)
        assert twin(x) == pytest.approx(y_train, rel=1e-5, abs=1e-6)


def module_of_everything() -> Any:
    """`Everything` in PyTorch, without a forward method."""
    t, wrap = torch.nn, torch.nn.utils.parametrizations
    model = t.Module()
    model.stem = t.Sequential(t.Conv2d(3, 4, 3, padding=1), t.BatchNorm2d(4, momentum=None))
    model.grouped = t.Conv2d(4, 4, (3, 1), padding=(1, 0), groups=2, bias=False)
    model.up = t.ConvTranspose2d(4, 4, (2, 3), 2)
    model.turned = t.ConvTranspose2d(4, 6, 2)
    model.group = t.GroupNorm(2, 6, eps=1e-6)
    model.instance = t.InstanceNorm2d(6, eps=1e-6, affine=True, track_running_stats=True)
    model.fc = t.Linear(36, 5)
    model.layer = t.LayerNorm(5, eps=1e-6, bias=False)
    model.rms = t.RMSNorm(5, eps=1e-6)
    model.wn = wrap.weight_norm(t.Linear(5, 5))
    model.sn = wrap.spectral_norm(t.Linear(5, 5))
    model.embed = t.Embedding(7, 5)
    return model


def test_names_and_shapes_are_those_of_pytorch() -> None:
    """The state_dict of tests without PyTorch loads strictly into PyTorch, and comes back unchanged."""
    variables = randomized(shapes_of(Everything()))
    like = state_dict_of_everything(variables)
    model = module_of_everything()
    made = tools.convert(variables, like=like, transposed=TRANSPOSED, channels_last=FLATTENED)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in made.items()})
    twin = tools.convert(
        model.state_dict(), like=EverythingNNX(nnx.Rngs(0)), channels_last=FLATTENED
    )
    back = tools.convert(twin, like=model.state_dict(), channels_last=FLATTENED)
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(back[name], value.numpy(), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("features", [3, 4])
def test_transposed_convolutions(rank: int, features: int, transpose_kernel: bool) -> None:
    """Transposed convolutions are recognized by type, name or argument, even if no shape shows them."""
    layer = getattr(torch.nn, f"ConvTranspose{rank}d")(3, features, 2, stride=2)
    x = np.random.default_rng(0).normal(size=(2, *(4,) * rank, 3)).astype(np.float32)
    y = np.moveaxis(layer(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().numpy(), 1, -1)
    window: Any = (2,) * rank
    options: Any = {"strides": window, "padding": "VALID", "transpose_kernel": transpose_kernel}
    sd = {f"ConvTranspose_0.{name}": value for name, value in layer.state_dict().items()}

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.ConvTranspose(features, window, **options)(x)

    arguments: Any = {"transposed": ()} if transpose_kernel else {}
    variables = tools.convert(sd, like=shapes_of(Model(), x), **arguments)
    np.testing.assert_allclose(jax.jit(Model().apply)(variables, x), y, atol=1e-5)
    assert_same(
        tools.convert(variables, like=sd, **arguments), {n: v.numpy() for n, v in sd.items()}
    )
    twin = nnx.ConvTranspose(3, features, window, **options, rngs=nnx.Rngs(0))
    twin = tools.convert(layer.state_dict(), like=twin)
    np.testing.assert_allclose(twin(jnp.asarray(x)), y, atol=1e-5)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "parametrized weight norm": lambda m: torch.nn.utils.parametrizations.weight_norm(m),
    "parametrized spectral norm": lambda m: torch.nn.utils.parametrizations.spectral_norm(m),
    "old weight norm": lambda m: torch.nn.utils.weight_norm(m),
    "old spectral norm": lambda m: torch.nn.utils.spectral_norm(m),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("layer", ["Linear", "Conv2d"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_wrapped_layers(wrapper: str, layer: str) -> None:
    """Outputs agree in evaluation after many steps."""
    torch.manual_seed(0)
    inner = getattr(torch.nn, layer)(3, 4, *([2] if layer == "Conv2d" else []))
    theirs = WRAPPERS[wrapper](inner)
    shape = (2, 3, 5, 5) if layer == "Conv2d" else (2, 3)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for _ in range(100):
        theirs(torch.from_numpy(x))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("original0", "weight_g")):
                parameter *= 1.5
    y = np.moveaxis(evaluated(torch, theirs, x), 1, -1)
    ours = nn.Conv(4, (2, 2), padding="VALID") if layer == "Conv2d" else nn.Dense(4)
    wrap = jnl.WeightNorm if "weight" in wrapper else jnl.SpectralNorm
    module, x = wrap(ours), np.moveaxis(x, 1, -1)
    shapes = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, use_running_average=False), x
    )
    variables = tools.convert(theirs.state_dict(), like=shapes)
    found: Any = module.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(found, y, atol=1e-6)
    back = tools.convert(variables, like=theirs.state_dict())
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(back[name], value.numpy(), atol=1e-6, err_msg=name)


def test_resnet18() -> None:
    """Outputs agree to 1e-5 in both modes, and running statistics do after a step, from random statistics.

    Along the way one layer's rounding is the next one's input, so some machines may exceed that.
    """
    with jax.numpy_dtype_promotion("strict"):
        found = resnet18.measured()
    for mode in ("evaluation", "training"):
        assert len(found[mode]) == 41 and found[mode]["fc"] < 1e-5
        assert max(found[mode].values()) < 3e-5
    assert len(found["statistics"]) == 40 and max(found["statistics"].values()) < 1e-5


def test_tensors_of_all_kinds(tmp_path: Path) -> None:
    """Supports bfloat16, parameters with gradients, views, channels_last memory and meta tensors."""
    conv = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    like = shapes_of(nn.Conv(4, (2, 2)))
    expected = tools.convert(conv.state_dict(), like=like)
    assert_same(tools.convert(dict(conv.named_parameters()), like=like), expected)
    meta = {name: value.to("meta") for name, value in conv.state_dict().items()}
    assert_same(
        tools.convert(expected, like=meta), {n: v.numpy() for n, v in conv.state_dict().items()}
    )
    half = conv.bfloat16().state_dict()
    low = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), like)
    found = tools.convert(half, like=low)
    np.testing.assert_array_equal(
        found["params"]["kernel"].astype(jnp.float32),
        half["weight"].float().numpy().transpose(2, 3, 1, 0),
    )
    back = tools.convert(found, like=half)
    conv.load_state_dict({name: torch.from_numpy(value) for name, value in back.items()})
    assert all((conv.state_dict()[name] == value).all() for name, value in half.items())
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    library.save_file(
        {name: value.contiguous() for name, value in half.items()}, tmp_path / "half.safetensors"
    )
    assert_same(tools.convert(tmp_path / "half.safetensors", like=low), found)


def test_checkpoints_that_are_more_than_a_state_dict() -> None:
    """For a model, or a dictionary with one in it, the error says what to pass."""
    model = torch.nn.Linear(2, 3)
    like = {"params": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    with pytest.raises(ValueError, match=r"pass model.state_dict\(\)"):
        tools.convert(model, like=like)
    with pytest.raises(
        ValueError, match=r"OrderedDict for 'state_dict'.*checkpoint\[\"state_dict\"\]"
    ):
        tools.convert({"epoch": torch.ones(1), "state_dict": model.state_dict()}, like=like)


def test_options() -> None:
    """Momentum becomes 1 - momentum; None stays None, or becomes 1 if PyTorch then never updates."""
    norm = torch.nn
    tracked = {"epsilon": 1e-5, "unbiased": True, "track_running_stats": True}
    affine = {"use_scale": True, "use_bias": True}
    assert tools.torch_options(norm.BatchNorm2d(3)) == {"momentum": 0.9, **tracked, **affine}
    average = tools.torch_options(norm.SyncBatchNorm(3, momentum=None, affine=False))
    assert average == {"momentum": None, **tracked, "use_scale": False, "use_bias": False}
    still = tools.torch_options(norm.InstanceNorm1d(3, momentum=None, track_running_stats=True))
    assert still["momentum"] == 1.0 and not still["use_scale"]
    derived = type("Frozen", (norm.BatchNorm1d,), {})
    assert tools.torch_options(derived(3))["momentum"] == 0.9
    assert tools.torch_options(norm.RMSNorm(3).bfloat16())["epsilon"] == np.finfo(np.float32).eps
    with pytest.raises(ValueError, match=r"must be one of BatchNorm, .*; got Linear\."):
        tools.torch_options(norm.Linear(2, 3))
