"""`torch_options` for objects with the attributes of PyTorch's norms; PyTorch itself is elsewhere."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxnorm import linen as jnl, tools

WEIGHT = np.zeros(4, np.float32)
EPSILON32, EPSILON64 = (float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64))
AFFINE = {"weight": WEIGHT, "bias": None}
ONE_AXIS = {"normalized_shape": (4,)}
# The class, its attributes, and the options.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "BatchNorm2d",
        {"momentum": 0.25, "eps": 1e-3, "running_mean": WEIGHT, **AFFINE},
        {"momentum": 0.75, "epsilon": 1e-3, "unbiased": True, "track_running_stats": True}
        | {"use_scale": True, "use_bias": False},
    ),
    (
        "SyncBatchNorm",
        {"momentum": None, "eps": 1e-3, "running_mean": None, "weight": None, "bias": WEIGHT},
        {"momentum": None, "epsilon": 1e-3, "unbiased": True, "track_running_stats": False}
        | {"use_scale": False, "use_bias": True},
    ),
    (
        "InstanceNorm1d",
        {"momentum": None, "eps": 1e-3, "running_mean": WEIGHT, "weight": None, "bias": None},
        {"momentum": 1.0, "epsilon": 1e-3, "unbiased": True, "track_running_stats": True}
        | {"use_scale": False, "use_bias": False},
    ),
    (
        "LayerNorm",
        {"eps": 1e-3, "normalized_shape": (3, 4), **AFFINE},
        {"epsilon": 1e-3, "use_scale": True, "use_bias": False}
        | {"reduction_axes": (-2, -1), "feature_axes": (-2, -1)},
    ),
    ("RMSNorm", {"eps": 1e-3, "weight": None, **ONE_AXIS}, {"epsilon": 1e-3, "use_scale": False}),
    (
        "RMSNorm",
        {"eps": None, "weight": WEIGHT, **ONE_AXIS},
        {"epsilon": EPSILON32, "use_scale": True},
    ),
    (
        "RMSNorm",
        {"eps": None, "weight": WEIGHT.astype(np.float64), **ONE_AXIS},
        {"epsilon": EPSILON64, "use_scale": True},
    ),
    (
        "GroupNorm",
        {"num_groups": 2, "eps": 1e-3, **AFFINE},
        {"num_groups": 2, "epsilon": 1e-3, "use_scale": True, "use_bias": False},
    ),
    (
        "LocalResponseNorm",
        {"size": 3, "alpha": 0.5, "beta": 2.0, "k": 1.5},
        {"size": 3, "alpha": 0.5, "beta": 2.0, "k": 1.5},
    ),
]


@pytest.mark.parametrize(("name", "attributes", "expected"), CASES, ids=[c[0] for c in CASES])
def test_options(name: str, attributes: Any, expected: Any) -> None:
    """Each attribute becomes the option of that meaning, and the class of the same name takes them."""
    module = type(name, (SimpleNamespace,), {})(**attributes)
    options = tools.torch_options(module)
    assert options == expected
    getattr(jnl, name.removeprefix("Sync").rstrip("123d"))(**options)


def act_norm(name: str, act: str, **of_act: Any) -> Any:
    """A module like timm's norms with activations, of a class named ``name`` + "Act"."""
    base = type(name, (SimpleNamespace,), {"forward": lambda self, x: x})
    members = {"forward": lambda self, x: self.act(x), "__module__": "timm.layers.norm_act"}
    kind = type(f"{name.removesuffix('2d')}Act2d", (base,), members)
    attributes = next(attributes for known, attributes, _ in CASES if known == name)
    identity = type("Identity", (), {})()
    return kind(**attributes, act=type(act, (SimpleNamespace,), {})(**of_act), drop=identity)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "LayerNorm"])
@pytest.mark.parametrize(
    ("act", "of_act", "activation"),
    [
        ("ReLU", {"inplace": True}, "relu"),
        ("SiLU", {}, "silu"),
        ("LeakyReLU", {"negative_slope": 0.01}, "leaky_relu"),
        ("GELU", {"approximate": "tanh"}, "gelu"),
        ("Identity", {}, None),
    ],
)
def test_activation_of_timm(name: str, act: str, of_act: Any, activation: str | None) -> None:
    """The norm applies the activation too."""
    options = tools.torch_options(act_norm(name, act, **of_act))
    assert options.get("activation") == activation
    assert options == tools.torch_options(act_norm(name, "Identity")) | options
    getattr(jnl, name.removesuffix("2d"))(**options)


@pytest.mark.parametrize(
    ("name", "act", "of_act", "named"),
    [
        ("GroupNorm", "Tanh", {}, "Tanh"),
        ("LocalResponseNorm", "ReLU", {}, "ReLU"),
        ("BatchNorm2d", "GELU", {"approximate": "none"}, "GELU"),
        ("BatchNorm2d", "LeakyReLU", {"negative_slope": 0.2}, "LeakyReLU(negative_slope=0.2)"),
        ("BatchNorm2d", "Hardswish", {}, "Hardswish"),
    ],
)
def test_activation_that_the_norm_does_not_have(
    name: str, act: str, of_act: Any, named: str
) -> None:
    """An activation is never lost: the error names it."""
    with pytest.raises(ValueError, match=r"must compute all that module computes") as raised:
        tools.torch_options(act_norm(name, act, **of_act))
    assert f"with {named}, which" in str(raised.value)


def test_dropout_of_timm() -> None:
    """Neither is dropout."""
    module = act_norm("BatchNorm2d", "ReLU")
    module.drop = SimpleNamespace(p=0.1)
    with pytest.raises(ValueError, match=r"with dropout of 0.1, which"):
        tools.torch_options(module)


@pytest.mark.parametrize(
    ("name", "place"), [("SplitBatchNorm2d", "timm.layers.split_batchnorm"), ("Mine", "model")]
)
def test_a_subclass_with_its_own_forward(name: str, place: str) -> None:
    """It is not taken for its base class."""
    base = type("BatchNorm2d", (SimpleNamespace,), {"forward": lambda self, x: x})
    own = type(name, (base,), {"forward": lambda self, x: x * x, "__module__": place})
    inherited = type("Other", (base,), {"__module__": place})
    attributes = next(attributes for known, attributes, _ in CASES if known == "BatchNorm2d")
    assert tools.torch_options(inherited(**attributes)) == tools.torch_options(base(**attributes))
    with pytest.raises(ValueError, match=rf"or compute the same; got {name}\."):
        tools.torch_options(own(**attributes))
