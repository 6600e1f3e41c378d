"""Masks know every parameter of every norm."""

from typing import Any

import pytest

from jaxnorm import linen as jnl, tools
from jaxnorm.norms._shared._recipe import Recipe
from tests.stands_for import ROWS

pytestmark = pytest.mark.every_case

OTHERS = {name for name in ROWS if name.startswith(("Ada", "Spade")) and name != "AdaIN"}
"""Layers with a kernel: their biases are those of a dense layer or a convolution."""
NAMES = {
    name: set(getattr(jnl, name)(**row.base)._parameters((8,)))
    for name, row in ROWS.items()
    if issubclass(getattr(jnl, name), Recipe)
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_parameters_of_a_norm(name: str) -> None:
    """All are a norm's and do not decay, next to layers whose parameters of the same name are not."""
    params: dict[str, Any] = {
        "norm": dict.fromkeys(NAMES[name], 0),
        "dense": {"kernel": 0, **dict.fromkeys(NAMES[name] - {"scale", "log_scale"}, 0)},
    }
    if name in OTHERS:
        assert not any(tools.norm_mask(params)["norm"].values())
        decays = tools.decay_mask(params)["norm"]
        assert decays == {n: n.endswith("kernel") for n in NAMES[name]}
        return
    assert tools.norm_mask(params)["norm"] == dict.fromkeys(NAMES[name], True)
    assert tools.decay_mask(params)["norm"] == dict.fromkeys(NAMES[name], False)
    if name != "QKNorm":  # whose names tell
        assert not any(tools.norm_mask(params)["dense"].values())


def test_gains_of_wrapped_layers() -> None:
    """A scale or gain of a reparameterized kernel is a norm's, its bias is not; none decays."""
    params = {"dense": {"kernel": 0, "bias": 0, "kernel/scale": 0}, "other": {"kernel/gain": 0}}
    assert tools.norm_mask(params) == {
        "dense": {"kernel": False, "bias": False, "kernel/scale": True},
        "other": {"kernel/gain": True},
    }
    assert tools.decay_mask(params) == {
        "dense": {"kernel": True, "bias": False, "kernel/scale": False},
        "other": {"kernel/gain": False},
    }
