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
