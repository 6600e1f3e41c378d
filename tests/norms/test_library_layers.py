"""Layers of timm, transformers and diffusers, where they are installed: outputs and all gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import linen as jnl
from tests.norms.libraries import MARKS, assert_same, differentiated, load, module_of, parameters_of

pytestmark = MARKS

IMAGES, TOKENS, HEADS = (2, 8, 5, 4), (2, 5, 8), (2, 5, 4, 8)


class Case(NamedTuple):
    """A layer of PyTorch, and the same as a function of its parameters and of the inputs."""

    theirs: str
    options: dict[str, Any]
    ours: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    call: Callable[..., Any] = lambda layer, *inputs: layer(*inputs)


def timm(name: str, ours: Callable[..., Any], shape: Any = IMAGES, **options: Any) -> Case:
    """A layer of timm, called with x."""
    return Case(f"timm.layers:{name}", options, ours, (shape,))


def transformers(name: str, ours: Callable[..., Any], *shapes: Any, **options: Any) -> Case:
    """A layer of a model of transformers, called with x and, possibly, a gate."""
    model, name = name.split(".")
    path = f"transformers.models.{model}.modeling_{model}:{name}"
    return Case(path, options, ours, shapes)


def diffusers(name: str, ours: Callable[..., Any], *shapes: Any, **options: Any) -> Case:
    """A layer of diffusers, called with x and a condition."""
    return Case(f"diffusers.models.{name}", options, ours, shapes)


def layer(name: str, renamed: dict[str, str], **options: Any) -> Callable[..., Any]:
    """A module of ours, channels first, whose parameters have these names in the other library."""
    module = getattr(jnl, name)(feature_axes=1, **options)
    return lambda p, x: module.apply({"params": {ours: p[s] for ours, s in renamed.items()}}, x)


def adaptive(name: str, chunks: list[int], **options: Any) -> Callable[..., Any]:
    """A module of ours with a condition; ``chunks`` are scale, shift and gate in the linear map."""

    def run(p: Any, x: Any, condition: Any) -> Any:
        module = getattr(jnl, name)(condition_features=condition.shape[-1], **options)
        sizes = (-1, x.shape[module.feature_axes])
        kernel = p["linear.weight"].T.reshape(condition.shape[-1], *sizes)[:, jnp.array(chunks)]
        bias = p["linear.bias"].reshape(sizes)[jnp.array(chunks)]
        return module.apply({"params": {"kernel": kernel, "bias": bias}}, x, condition)

    return run


def spatial(p: Any, x: Any, drawn: Any) -> Any:
    """SPADE on a group norm, with convolutions that see one pixel."""
    affine = p["norm_layer.weight"], p["norm_layer.bias"]
    y = jn.group_norm(x, *affine, feature_axes=1, epsilon=1e-6)
    scale, bias = (
        jnp.einsum("nchw,fc->nfhw", drawn, p[f"{name}.weight"][..., 0, 0])
        + p[f"{name}.bias"][:, None, None]
        for name in ("conv_y", "conv_b")
    )
    return jn.modulate(y, scale, bias, feature_axes=1)


def rms(**options: Any) -> Callable[..., Any]:
    """RMS norm with these options."""
    return lambda p, x: jn.rms_norm(x, p["weight"], **options)


def queries(**options: Any) -> Callable[..., Any]:
    """QK norm of queries; the keys are the same."""
    return lambda p, x: jn.qk_norm(x, x, p["weight"], p["weight"], **options)[0]


def queries_of_all_heads(p: Any, x: Any) -> Any:
    """QK norm of queries whose heads the model has in one axis."""
    scale = p["weight"].reshape(4, -1)
    axes: Any = {"reduction_axes": (-2, -1), "feature_axes": (-2, -1)}
    heads = x.reshape(*x.shape[:-1], 4, -1)
    return jn.qk_norm(heads, heads, scale, scale, **axes)[0].reshape(x.shape)


def gated(**options: Any) -> Callable[..., Any]:
    """Gated RMS norm with these options."""
    return lambda p, x, gate: jn.gated_rms_norm(x, gate, p["weight"], **options)


def scaled_convolution(p: Any, x: Any) -> Any:
    """A convolution of NFNet."""
    kernel = jn.scaled_weight_standardization(p["weight"], p["gain"].reshape(-1), feature_axes=0)
    return jax.lax.conv(x, kernel, (1, 1), "SAME") + p["bias"].reshape(-1, 1, 1)


def gated_layer(layer: Any, x: Any, condition: Any) -> Any:
    """The norm and the gate of the attention, which ours has for every position."""
    y, gate, *_ = layer(x, emb=condition)
    return y, gate[:, None].expand_as(y)


AFFINE = {"scale": "weight", "bias": "bias"}
CHANNELS: Any = {"reduction_axes": 1, "feature_axes": 1}
GROUPS = {"num_groups": 2}
CASES = [
    timm(
        "EvoNorm2dS0",
        layer("EvoNormS0", AFFINE | {"v": "v"}, **GROUPS),
        **{"num_features": 8, "groups": 2},
    ),
    timm("EvoNorm2dS1", layer("EvoNormS1", AFFINE, **GROUPS), num_features=8, groups=2),
    timm("EvoNorm2dS2", layer("EvoNormS2", AFFINE, **GROUPS), num_features=8, group_size=4),
    timm(
        "EvoNorm2dS2a",
        layer("EvoNormS2", AFFINE, **GROUPS, epsilon=1e-3),
        **{"num_features": 8, "groups": 2},
    ),
    timm(
        "EvoNorm2dS0",
        layer("EvoNormS0", AFFINE, nonlinearity=False),
        **{"num_features": 8, "apply_act": False},
    ),
    timm(
        "FilterResponseNormTlu2d",
        layer("FilterResponseNorm", AFFINE | {"threshold": "tau"}, epsilon=1e-5),
        num_features=8,
    ),
    timm(
        "GroupNormAct",
        layer("GroupNorm", AFFINE, **GROUPS, epsilon=1e-5, activation="silu"),
        **{"num_channels": 8, "num_groups": 2, "act_layer": "silu"},
    ),
    timm(
        "LayerNormAct2d",
        layer("LayerNorm", AFFINE, reduction_axes=1, epsilon=1e-5, activation="gelu"),
        **{"num_channels": 8, "act_layer": "gelu_tanh"},
    ),
    timm(
        "RmsNormAct2d",
        rms(**CHANNELS, activation="leaky_relu"),
        **{"num_channels": 8, "act_layer": "leaky_relu"},
    ),
    timm(
        "ScaledStdConv2d",
        scaled_convolution,
        **{"in_channels": 8, "out_channels": 6, "kernel_size": 3},
    ),
    timm("LayerScale", lambda p, x: jn.layer_scale(x, p["gamma"]), TOKENS, dim=8),
    timm("LayerScale2d", layer("LayerScale", {"scale": "gamma"}), dim=8),
    transformers("llama.LlamaRMSNorm", rms(scale_after_cast=True), TOKENS, hidden_size=8),
    transformers("t5.T5LayerNorm", rms(scale_after_cast=True), TOKENS, hidden_size=8),
    transformers("gemma3.Gemma3RMSNorm", rms(scale_offset=1.0), TOKENS, dim=8),
    transformers("gemma3.Gemma3RMSNorm", queries(scale_offset=1.0), HEADS, dim=8),
    transformers("qwen3.Qwen3RMSNorm", queries(), HEADS, hidden_size=8),
    transformers(
        "cohere.CohereLayerNorm",
        queries(kind="layer", feature_axes=(-2, -1), epsilon=1e-5),
        HEADS,
        hidden_size=(4, 8),
    ),
    transformers("olmo2.Olmo2RMSNorm", queries_of_all_heads, TOKENS, hidden_size=8),
    transformers("qwen3_next.Qwen3NextRMSNorm", rms(scale_offset=1.0), TOKENS, dim=8),
    transformers("qwen3_next.Qwen3NextRMSNormGated", gated(), TOKENS, TOKENS, hidden_size=8),
    transformers(
        "mamba2.MambaRMSNormGated",
        gated(norm_before_gate=False, num_groups=2),
        *(TOKENS, TOKENS),
        **{"hidden_size": 8, "group_size": 4},
    ),
    diffusers(
        "normalization:AdaLayerNormZero",
        adaptive("AdaLayerNormZero", [1, 0, 2]),
        *(TOKENS, (2, 8)),
        embedding_dim=8,
    )._replace(call=gated_layer),
    *(
        diffusers(
            "normalization:AdaLayerNormContinuous",
            adaptive(ours, [0, 1]),
            *(TOKENS, (2, 6)),
            **{"embedding_dim": 8, "conditioning_embedding_dim": 6, "norm_type": theirs},
            **{"elementwise_affine": False, "eps": 1e-6},
        )
        for ours, theirs in (("AdaLayerNorm", "layer_norm"), ("AdaRMSNorm", "rms_norm"))
    ),
    diffusers(
        "normalization:AdaGroupNorm",
        adaptive("AdaGroupNorm", [0, 1], **GROUPS, feature_axes=1),
        *(IMAGES, (2, 6)),
        **{"embedding_dim": 6, "out_dim": 8, "num_groups": 2, "act_fn": "silu"},
    ),
    diffusers(
        "attention_processor:SpatialNorm",
        spatial,
        *((2, 32, 5, 4), (2, 3, 5, 4)),
        **{"f_channels": 32, "zq_channels": 3},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.theirs.split(":")[-1])
def test_layer(case: Case) -> None:
    """Outputs and all gradients agree."""
    rng, module = np.random.default_rng(0), module_of(case.theirs, case.options)
    inputs = [rng.normal(0.5, 2, shape).astype(np.float32) for shape in case.shapes]
    y, pull = jax.vjp(jax.jit(case.ours), parameters_of(module), *inputs)
    dy = jax.tree.map(lambda y: rng.normal(size=y.shape).astype(np.float32), y)
    assert_same((y, pull(dy)), differentiated(module, inputs, dy, case.call))


@pytest.mark.parametrize("name", ["llama.LlamaRMSNorm", "t5.T5LayerNorm"])
def test_bits(name: str) -> None:
    """In bfloat16, outputs are those of transformers, except where float32 is between two of bfloat16."""
    case = transformers(name, rms(scale_after_cast=True), (64, 96), hidden_size=96)
    torch = load("torch")
    module = module_of(case.theirs, case.options).to(torch.bfloat16)
    x = torch.randn(case.shapes[0], generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    scale, x_ours = (jnp.asarray(a.float().numpy(), jnp.bfloat16) for a in (module.weight.data, x))
    y = np.float32(case.ours({"weight": scale}, x_ours))
    assert np.mean(y != module(x).detach().float().numpy()) < 1e-3
