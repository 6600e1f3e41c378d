"""A wrapper for any function of a weight."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from .._shared._weight_recipe import WeightRecipe


@dataclass(eq=False)
class ReparameterizedRecipe(WeightRecipe):
    """Calls the wrapped layer or model with ``function(weight)`` instead of each chosen weight.

    The parameters keep their paths and values.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> from flax import linen as nn, nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(4)])
        >>> first = jnl.Reparameterized(model, jn.weight_norm, variable_filter={"layers_0/kernel"})
        >>> y, variables = first.init_with_output(jax.random.key(0), jnp.ones((2, 3)))
        >>> jax.tree.map(jnp.shape, variables["params"]["layer_instance"]["layers_0"])
        {'bias': (8,), 'kernel': (3, 8)}
        >>> layer = jnx.Reparameterized(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), jn.weight_norm)
        >>> print((layer(jnp.eye(3)) ** 2).sum(0).round(3))
        [1. 1. 1. 1. 1. 1. 1. 1.]
    """

    function: Callable[[jax.Array], jax.Array]
    """Function of one weight, such as `jaxnorm.magnitude_preserving`."""

    def _changed(self, weight: jax.Array, gain: jax.Array | None) -> jax.Array:
        """Applies the function."""
        return self.function(weight)
