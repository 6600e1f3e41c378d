"""A layer, or a whole model, with a function of its weights in their place."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax

from ..core._explained import explaining_fields
from ..norms._magnitude_preserving import magnitude_preserving
from ..norms._scaled_weight_standardization import scaled_weight_standardization
from ._wrapped import call_with, is_chosen


class Reparameterized(nn.Module):
    """Calls the layer or model that it wraps with ``function(weight)`` for each chosen weight.

    The parameters stay where they are, as they are.

    Attributes:
        layer_instance: the layer or model to wrap.
        function: of one weight, such as `jaxnorm.magnitude_preserving`.
        variable_filter: the weights: those with one of these strings in their path. None or nothing
            in it: all.

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
        """Calls the layer with the other weights.

        Args:
            *args: for the layer.
            use_running_average: for the layer, if it takes one.
            **kwargs: for the layer.

        Returns:
            What the layer returns.
        """

        def changed(path: str, weight: jax.Array) -> jax.Array:
            return self.function(weight) if is_chosen(path, self.variable_filter) else weight

        return call_with(changed, self.layer_instance, use_running_average, *args, **kwargs)


class ScaledWeightStandardization(Reparameterized):
    """`jaxnorm.scaled_weight_standardization` of the kernels of the layer or model it wraps.

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
    """`jaxnorm.magnitude_preserving` of the kernels of the layer or model it wraps.

    Example:
        >>> import jax, flax.linen as nn
        >>> from jaxnorm import linen as jnl
        >>> x = 5 * jax.random.normal(jax.random.key(0), (1000, 64))
        >>> y, _ = jnl.MagnitudePreserving(nn.Dense(32)).init_with_output(jax.random.key(1), x)
        >>> print(y.std().round(0))
        5.0
    """

    function: Callable[[jax.Array], jax.Array] = magnitude_preserving
