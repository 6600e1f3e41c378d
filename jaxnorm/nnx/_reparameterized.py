"""Wrappers that replace the weights of a layer or a whole model with a function of those weights."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ..core.calling._explained import explained
from ..norms.weight._magnitude_preserving import magnitude_preserving
from ..norms.weight._scaled_weight_standardization import scaled_weight_standardization
from ._transformable import transformable
from ._wrapped import KERNELS, Path, call_with


class Reparameterized(nnx.Module):
    """Calls the wrapped layer or model with ``function(weight)`` instead of each chosen weight.

    The parameters keep their paths and values.

    Args:
        layer_instance: the layer or model to wrap.
        function: function of one weight, such as `jaxnorm.magnitude_preserving`.
        variable_filter: selects the weights to change, by an NNX filter on path and variable. The default
            selects the kernels.
        rngs: ignored; accepted because other wrappers need it.

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
        """Calls the layer with ``function(weight)`` instead of each chosen weight.

        Args:
            x: first argument for the layer.
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.
        """

        def changed(path: Path, weight: nnx.Param) -> jax.Array:
            chosen = self.variable_filter(path, weight)
            return self.function(weight[...]) if chosen else weight[...]

        return call_with(changed, self.layer_instance, use_running_average, x, *args, **kwargs)


class ScaledWeightStandardization(Reparameterized):
    """`jaxnorm.scaled_weight_standardization` of the kernels of the wrapped layer or model.

    Args:
        layer_instance: the layer or model to wrap.
        variable_filter: selects the weights to change, by an NNX filter on path and variable. The default
            selects the kernels.
        rngs: ignored; accepted because other wrappers need it.

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
    """`jaxnorm.magnitude_preserving` of the kernels of the wrapped layer or model.

    Args:
        layer_instance: the layer or model to wrap.
        variable_filter: selects the weights to change, by an NNX filter on path and variable. The default
            selects the kernels.
        rngs: ignored; accepted because other wrappers need it.

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
