"""Wrappers of weights, in both module systems, refuse a class, and a filter that chooses no weight."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx
from jaxnorm.norms._registry import REGISTRY

X = jnp.ones((2, 3))
WRAPPERS = [norm.layer for norm in REGISTRY if norm.kind == "weight" and norm.layer]


def linen(name: str, layer: Any, **options: Any) -> Any:
    """Calls the Linen wrapper of a layer."""
    if name == "Reparameterized":
        options["function"] = jnp.tanh
    return getattr(jnl, name)(layer_instance=layer, **options).init(
        jax.random.key(0), X, use_running_average=True
    )


def in_nnx(name: str, layer: Any, **options: Any) -> Any:
    """Calls the NNX wrapper of a layer."""
    if name == "Reparameterized":
        options["function"] = jnp.tanh
    wrapper = getattr(jnx, name)(layer_instance=layer, rngs=nnx.Rngs(0), **options)
    return wrapper(X, use_running_average=True)


@pytest.mark.parametrize("name", WRAPPERS)
def test_classes_are_refused(name: str) -> None:
    """A layer that is not constructed yet is an error that says so."""
    with pytest.raises(ValueError, match="layer_instance must be a Linen module; got <class"):
        linen(name, nn.Dense)
    with pytest.raises(ValueError, match="layer_instance must be an NNX module; got <class"):
        in_nnx(name, nnx.Linear)


@pytest.mark.parametrize("name", WRAPPERS)
def test_something_must_change(name: str) -> None:
    """A typo in the filter, or a layer with vectors alone, would silently normalize nothing."""
    message = "must have a parameter that this wrapper changes; got a layer whose parameters are "
    with pytest.raises(ValueError, match=message + "layer_instance/bias, layer_instance/scale"):
        linen(name, nn.LayerNorm())
    with pytest.raises(ValueError, match=message + "bias, scale"):
        in_nnx(name, nnx.LayerNorm(3, rngs=nnx.Rngs(0)))
    if name == "SpectralNorm":  # it has no filter
        return
    with pytest.raises(ValueError, match=message):
        linen(name, nn.Dense(2), variable_filter={"kernal"})
    with pytest.raises(ValueError, match=message):
        in_nnx(
            name,
            nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
            variable_filter=nnx.PathContains("kernal"),
        )
