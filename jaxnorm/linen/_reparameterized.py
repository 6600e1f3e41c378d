"""Wrappers that replace the weights of a layer or a whole model with a function of those weights."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax

from ..core.calling._explained import explaining_fields
from ..norms.weight._magnitude_preserving import magnitude_preserving
from ..norms.weight._scaled_weight_standardization import scaled_weight_standardization
from ._wrapped import call_with, is_chosen


class Reparameterized(nn.Module):
    """Calls the wrapped layer or model with ``function(weight)`` instead of each chosen weight.

    The parameters keep their paths and values.

    Attributes:
        layer_instance: the layer or model to wrap.
        function: function of one weight, such as `jaxnorm.magnitude_preserving`.
        variable_filter: selects the weights to change, by strings in their paths. None or an empty filter
            selects all.

    Example:
        >>> import jax, flax.linen as nn, jaxnorm as jn
        >>> from jaxnorm import linen as jnl
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(4)])
        >>> first = jnl.Reparameterized(model, jn.weight_norm, variable_filter={"layers_0/kernel"})
        >>> x = jax.numpy.ones((2, 3))
        >>> y, variables = first.init_with_output(jax.random.key(0), x)
        >>> jax.tree.map(jax.numpy.shape, variables["params"]["layer_instance"]["layers_0"])
        {'bias': (8,), 'kernel': (3, 8)}
    """

    layer_instance: nn.Module
    function: Callable[[jax.Array], jax.Array]
    variable_filter: Iterable[str] | None = dataclasses.field(default_factory=lambda: {"kernel"})

    @nn.compact
    @explaining_fields
    def __call__(self, *args: Any, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with ``function(weight)`` instead of each chosen weight.

        Args:
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.
        """

        def changed(path: str, weight: jax.Array) -> jax.Array:
            return self.function(weight) if is_chosen(path, self.variable_filter) else weight

        return call_with(changed, self.layer_instance, use_running_average, *args, **kwargs)


class ScaledWeightStandardization(Reparameterized):
    """`jaxnorm.scaled_weight_standardization` of the kernels of the wrapped layer or model.

    Example:
        >>> import jax, flax.linen as nn
        >>> from jaxnorm import linen as jnl
        >>> x = 5 * jax.random.normal(jax.random.key(0), (1000, 64))
        >>> y, _ = jnl.ScaledWeightStandardization(nn.Dense(32)).init_with_output(jax.random.key(1), x)
        >>> print(y.std().round(0))
        5.0
    """

    function: Callable[[jax.Array], jax.Array] = scaled_weight_standardization


class MagnitudePreserving(Reparameterized):
    """`jaxnorm.magnitude_preserving` of the kernels of the wrapped layer or model.

    Example:
        >>> import jax, flax.linen as nn
        >>> from jaxnorm import linen as jnl
        >>> x = 5 * jax.random.normal(jax.random.key(0), (1000, 64))
        >>> y, _ = jnl.MagnitudePreserving(nn.Dense(32)).init_with_output(jax.random.key(1), x)
        >>> print(y.std().round(0))
        5.0
    """

    function: Callable[[jax.Array], jax.Array] = magnitude_preserving
