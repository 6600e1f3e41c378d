"""Masks know every parameter of every norm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx, tools
from jaxnorm.norms._shared._recipe import Recipe
from tests.stands_for import CLASSES, ROWS, fields_of, is_wrapper

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


WRAPPERS = [name for name in CLASSES if is_wrapper(name)]


def in_linen(name: str, options: dict[str, Any]) -> Any:
    """Parameters of two wrapped layers with a norm between them."""
    model = nn.Sequential([nn.Dense(3), nn.LayerNorm(), nn.Dense(3)])
    wrapper = getattr(jnl, name)(model, **options)
    return wrapper.init(jax.random.key(0), jnp.ones((2, 3)), use_running_average=True)["params"]


def in_nnx(name: str, options: dict[str, Any]) -> Any:
    """The same for NNX."""
    rngs = nnx.Rngs(0)
    linear, last = (nnx.Linear(3, 3, rngs=rngs) for _ in range(2))
    model = nnx.Sequential(linear, nnx.LayerNorm(3, rngs=rngs), last)
    return nnx.state(getattr(jnx, name)(model, rngs=rngs, **options), nnx.Param)


def by_role(mask: Any) -> list[tuple[str, bool]]:
    """The mask of each parameter, with what the parameter is."""
    found = []
    for path, value in jax.tree_util.tree_flatten_with_path(mask)[0]:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        # In Linen "layers_0/kernel/scale", in NNX "scales" and ("layers", 0, "kernel").
        is_of_nnx = isinstance(keys[-1], tuple)
        role = keys[-2].removesuffix("s") if is_of_nnx else keys[-1].split("/")[-1]
        found.append((role, value))
    return sorted(found)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_nnx_as_those_of_linen(name: str) -> None:
    """Both know the scales and gains of a wrapper, which NNX keeps by the paths of the weights."""
    fields = fields_of("linen", name)
    options: dict[str, Any] = {"use_gain": True} if "use_gain" in fields else {}
    if name == "Reparameterized":
        options["function"] = jnp.tanh
    ours, theirs = in_nnx(name, options), in_linen(name, options)
    new = {"gain"} if "use_gain" in fields else {"scale"}  # the norm in the model has a scale, too
    for mask, of_norms in ((tools.norm_mask, True), (tools.decay_mask, False)):
        got = by_role(mask(ours))
        assert got == by_role(mask(theirs)) == by_role(mask(nnx.to_pure_dict(ours)))
        values = {(role, value) for role, value in got if role != "bias"}
        expected = {role: of_norms for role in {"scale"} | new} | {"kernel": not of_norms}
        assert values == set(expected.items())
    if {"use_gain", "use_scale"} & {*fields}:
        assert sum(jax.tree.leaves(tools.norm_mask(ours, "*/2/kernel"))) == 1
