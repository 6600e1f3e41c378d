"""Tools work for models that jit a part of themselves and were traced before."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import tools

X = 3 + jax.random.normal(jax.random.key(0), (16, 4))


class Block(nn.Module):
    """A jitted dense layer with a batch norm in training."""

    @nn.jit
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns normalized features."""
        return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))


class Jitted(nn.Module):
    """A model with the block."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Calls the block."""
        return Block(name="block")(x)


class JittedNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self) -> None:
        self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns normalized features."""
        return nnx.jit(lambda model, x: model.norm(model.dense(x)))(self, x)


@pytest.fixture
def applied() -> tuple[Jitted, Any]:
    """The Linen model, after a training step, and its variables."""
    model = Jitted()
    variables = model.init(jax.random.key(1), X)
    model.apply(variables, X, mutable=["batch_stats"])
    return model, variables


def moved(model: nn.Module, variables: Any) -> bool:
    """Whether a training step changes the running mean."""
    _, updated = model.apply(variables, X, mutable=["batch_stats"])
    return bool(jnp.any(updated["batch_stats"]["block"]["BatchNorm_0"]["mean"] != 0))


def test_frozen(applied: tuple[Jitted, Any]) -> None:
    """The model is frozen even though jax has traced the block; the given model is not affected."""
    model, variables = applied
    assert moved(model, variables)
    frozen = tools.freeze(model, variables=variables)
    assert not moved(frozen, variables)
    assert not moved(frozen, variables)
    assert moved(model, variables)


def test_recalibrated_twice(applied: tuple[Jitted, Any]) -> None:
    """One pass and layer by layer need different results from the same block."""
    model, variables = applied
    for each in (False, True):
        again = tools.recalibrate(model, [X[:7], X[7:]], variables=variables, layer_by_layer=each)
        dense = jax.device_get(variables["params"]["block"]["Dense_0"])
        want = (np.asarray(X, np.float64) @ dense["kernel"] + dense["bias"]).mean(0)
        found = again["batch_stats"]["block"]["BatchNorm_0"]["mean"]
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_nnx() -> None:
    """The same holds in NNX."""
    model = JittedNnx()
    model(X)
    again = tools.recalibrate(model, [X])
    np.testing.assert_allclose(again.norm.mean[...], again.dense(X).mean(0), rtol=1e-5, atol=1e-6)
    frozen = tools.freeze(again)
    frozen.train()
    before = frozen.norm.mean[...]
    frozen(X)
    assert (frozen.norm.mean[...] == before).all()
