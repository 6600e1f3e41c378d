"""Layers, norms and random arrays for the tests of `fold`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx, tools

NORMS = {"flax": (nn.BatchNorm, nnx.BatchNorm), "jaxnorm": (jnl.BatchNorm, jnx.BatchNorm)}


class Layers(nn.Module):
    """Linen layers in sequence."""

    layers: tuple[Callable[[jax.Array], jax.Array], ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers in sequence."""
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    """A Linen model defined by a function."""

    function: Callable[[jax.Array], Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """Calls the function."""
        return self.function(x)


def data(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Normally distributed random numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def random_arrays(tree: Any, *, positive: bool = False, dtype: Any = None) -> Any:
    """Random arrays: statistics far from 0 and 1, and scales of both signs, one of them 0."""
    rng = np.random.default_rng(1)

    def replaced(path: Any, array: jax.Array) -> jax.Array:
        name = next(n for n in reversed([str(getattr(k, "key", "")) for k in path]) if n)
        new = rng.standard_normal(array.shape)
        if name == "var":
            new = 0.1 + np.abs(new)
        if name == "scale":
            new = 0.5 + np.abs(new) if positive else np.where(new == new.flat[1], 0, new)
        return jnp.asarray(new, dtype or array.dtype)

    return jax.tree_util.tree_map_with_path(replaced, tree)


def linen(model: nn.Module, x: jax.Array, **options: Any) -> Any:
    """Variables of a Linen module."""
    return random_arrays(model.init(jax.random.key(0), x), **options)


def in_nnx(model: nnx.Module) -> Any:
    """An NNX model for evaluation."""
    model.eval()
    graph, state = nnx.split(model)
    return nnx.merge(graph, random_arrays(state))


def assert_same(folded: tools.Folded, model: Any, x: Any, variables: Any = None) -> None:
    """Checks that the folded model gives the same result without a norm's arithmetic, and its error."""
    if variables is None:
        y, z, program = model(x), folded.model(x), jax.make_jaxpr(folded.model)(x)
    else:
        y, z = model.apply(variables, x), jax.jit(folded.model.apply)(folded.variables, x)
        program = jax.make_jaxpr(folded.model.apply)(folded.variables, x)
    tolerance = 200 * float(jnp.finfo(y.dtype).eps)
    assert y.dtype == z.dtype
    np.testing.assert_allclose(
        np.asarray(z, float), np.asarray(y, float), tolerance, tolerance * float(abs(y).max())
    )
    difference = np.abs(np.asarray(y, float) - np.asarray(z, float)).max()
    assert abs(folded.difference - difference) <= tolerance * (1 + float(abs(y).max()))
    assert not {"rsqrt", "sqrt", "div", "sub"} & set(str(program).replace("[", " ").split())


def applied(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """Calls a Linen module."""
    return model.apply(variables, x)


def shapes(tree: Any) -> Mapping[str, Any]:
    """The shapes of all arrays."""
    return jax.tree.map(jnp.shape, tree)
