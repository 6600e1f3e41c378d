"""`WeightStandardization` as a Linen module."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._axes import Axes, feature_shape
from ..core.calling._explained import explaining_fields
from ..norms.weight._weight_standardization import weight_standardization
from ._variables import Checked
from ._wrapped import call_with, is_chosen


class WeightStandardization(Checked):
    """Weight standardization of the wrapped layer.

    Computes `jaxnorm.weight_standardization` of each chosen weight. The layer's own parameters keep their
    paths and values; each ``gain`` is a parameter named after the path of its weight.

    Attributes:
        layer_instance: the layer to wrap.
        epsilon: added to the variance.
        dtype: dtype of the standardized weights; None is the dtype that weights and gains promote to.
        param_dtype: dtype of the gains.
        use_gain: whether to multiply by learned gains.
        gain_init: initializer for the gains.
        feature_axes: the output axes of a weight, which are not reduced.
        variable_filter: selects the weights to standardize, by strings in their paths. None or an empty
            filter selects all.

    Example:
        >>> import jax, flax.linen as nn
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> layer = jnl.WeightStandardization(nn.Conv(16, (3, 3)))
        >>> y, variables = layer.init_with_output(jax.random.key(1), x)
        >>> jax.tree.map(jax.numpy.shape, variables)["params"]
        {'layer_instance': {'bias': (16,), 'kernel': (3, 3, 3, 16)}}
    """

    layer_instance: nn.Module
    epsilon: float = 1e-10
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_gain: bool = False
    gain_init: initializers.Initializer = initializers.ones
    feature_axes: Axes = -1
    variable_filter: Iterable[str] | None = dataclasses.field(default_factory=lambda: {"kernel"})

    @nn.compact
    @explaining_fields
    def __call__(self, *args: Any, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with standardized weights.

        Args:
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.weight_standardization`.
        """
        return call_with(
            self._standardized, self.layer_instance, use_running_average, *args, **kwargs
        )

    @nn.nowrap
    def _standardized(self, path: str, weight: jax.Array) -> jax.Array:
        if not is_chosen(path, self.variable_filter):
            return weight
        gain = None
        if self.use_gain:
            shape = feature_shape(weight, self.feature_axes)
            gain = self.param(f"{path}/gain", self.gain_init, shape, self.param_dtype)
        return weight_standardization(
            weight,
            gain,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
