"""`WeightStandardization` as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from jax.typing import DTypeLike

from ..core._axes import Axes, feature_shape
from ..core.calling._arguments import check_fields
from ..core.calling._explained import explained
from ..norms.weight._weight_standardization import weight_standardization
from ._transformable import transformable
from ._wrapped import KERNELS, Path, call_with, one_for_each


class WeightStandardization(nnx.Module):
    """Weight standardization of the wrapped layer.

    Computes `jaxnorm.weight_standardization` of each chosen weight in every call. The layer's own parameters
    keep their paths and values; ``gains`` holds an `nnx.Param` for each chosen weight, keyed by its path.

    Args:
        layer_instance: the layer to wrap.
        epsilon: added to the variance.
        dtype: dtype of the standardized weights; None is the dtype that weights and gains promote to.
        param_dtype: dtype of the gains.
        use_gain: whether to multiply by learned gains.
        gain_init: initializer for the gains.
        feature_axes: the output axes of a weight, which are not reduced.
        variable_filter: selects the weights to standardize, by an NNX filter on path and variable. The
            default selects the kernels.
        rngs: random streams for the initializer; can be None without gains.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> layer = jnx.WeightStandardization(nnx.Conv(3, 16, (3, 3), rngs=nnx.Rngs(0)))
        >>> y = layer(jax.random.normal(jax.random.key(0), (4, 8, 8, 3)))
        >>> print(y.shape)
        (4, 8, 8, 16)
    """

    @explained
    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        epsilon: float = 1e-10,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_gain: bool = False,
        gain_init: nnx.Initializer = initializers.ones,
        feature_axes: Axes = -1,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.layer_instance = layer_instance
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_gain = use_gain
        self.feature_axes = feature_axes
        check_fields(vars(self))
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)
        self.gains: dict[Path, nnx.Param] | None = nnx.data(None)
        if use_gain:

            def make(weight: jax.Array) -> jax.Array:
                if rngs is None:
                    raise ValueError(
                        "rngs must be given with use_gain=True; got None. Pass rngs=nnx.Rngs(0)."
                    )
                return gain_init(rngs.params(), feature_shape(weight, feature_axes), param_dtype)

            self.gains = one_for_each(layer_instance, self.variable_filter, make)

    @transformable
    def __call__(
        self, x: jax.Array, *args: Any, use_running_average: bool | None = None, **kwargs: Any
    ) -> Any:
        """Calls the layer with standardized weights.

        Args:
            x: first argument for the layer.
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.weight_standardization`.
        """
        return call_with(
            self._standardized, self.layer_instance, use_running_average, x, *args, **kwargs
        )

    def _standardized(self, path: Path, weight: nnx.Param) -> jax.Array:
        if not self.variable_filter(path, weight):
            return weight[...]
        gain = None if self.gains is None else self.gains[path][...]
        return weight_standardization(
            weight[...],
            gain,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
