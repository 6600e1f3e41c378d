"""A layer, or a whole model, with a function of its weights in their place."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ..core._explained import explained
from ..norms._magnitude_preserving import magnitude_preserving
from ..norms._scaled_weight_standardization import scaled_weight_standardization
from ._transformable import transformable
from ._wrapped import KERNELS, Path, call_with


class Reparameterized(nnx.Module):
    """Calls the layer or model that it wraps with ``function(weight)`` for each chosen weight.

    The parameters stay where they are, as they are.

    Args:
        layer_instance: the layer or model to wrap.
        function: of one weight, such as `jaxnorm.magnitude_preserving`.
        variable_filter: a filter of NNX, of path and variable: the weights. Kernels, unless told otherwise.
        rngs: ignored; other wrappers need them.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> layer = jnx.Reparameterized(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), jn.weight_norm)
        >>> print((layer(jnp.eye(3)) ** 2).sum(0).round(3))
        [1. 1. 1. 1. 1. 1. 1. 1.]
    """

    @explained
    def __init__(
        self,
        layer_instance: Any,
        function: Callable[[jax.Array], jax.Array],
        *,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.layer_instance = layer_instance
        self.function = function
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)

    @transformable
    def __call__(
        self, x: jax.Array, *args: Any, use_running_average: bool | None = None, **kwargs: Any
    ) -> Any:
        """Calls the layer with the other weights.

        Args:
            x: for the layer.
            *args: for the layer.
            use_running_average: for the layer, if it takes one.
            **kwargs: for the layer.

        Returns:
            What the layer returns.
        """

        def changed(path: Path, weight: nnx.Param) -> jax.Array:
            chosen = self.variable_filter(path, weight)
            return self.function(weight[...]) if chosen else weight[...]

        return call_with(changed, self.layer_instance, use_running_average, x, *args, **kwargs)


class ScaledWeightStandardization(Reparameterized):
    """`jaxnorm.scaled_weight_standardization` of the kernels of the layer or model it wraps.

    Args:
        layer_instance: the layer or model to wrap.
        variable_filter: a filter of NNX, of path and variable: the weights. Kernels, unless told otherwise.
        rngs: ignored; other wrappers need them.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 * jax.random.normal(jax.random.key(0), (1000, 64))
        >>> layer = jnx.ScaledWeightStandardization(nnx.Linear(64, 32, rngs=nnx.Rngs(0)))
        >>> print(layer(x).std().round(0))
        5.0
    """

    @explained
    def __init__(
        self,
        layer_instance: Any,
        *,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(
            layer_instance, scaled_weight_standardization, variable_filter=variable_filter
        )


class MagnitudePreserving(Reparameterized):
    """`jaxnorm.magnitude_preserving` of the kernels of the layer or model it wraps.

    Args:
        layer_instance: the layer or model to wrap.
        variable_filter: a filter of NNX, of path and variable: the weights. Kernels, unless told otherwise.
        rngs: ignored; other wrappers need them.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 * jax.random.normal(jax.random.key(0), (1000, 64))
        >>> layer = jnx.MagnitudePreserving(nnx.Linear(64, 32, rngs=nnx.Rngs(0)))
        >>> print(layer(x).std().round(0))
        5.0
    """

    @explained
    def __init__(
        self,
        layer_instance: Any,
        *,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        super().__init__(layer_instance, magnitude_preserving, variable_filter=variable_filter)
