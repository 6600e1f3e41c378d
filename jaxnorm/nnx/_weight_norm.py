"""`WeightNorm` as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from flax.typing import PromoteDtypeFn
from jax.typing import DTypeLike

from ..core._axes import Axes, feature_shape
from ..core.calling._arguments import check_fields, own_arguments
from ..core.calling._explained import explained
from ..norms.weight._weight_norm import kernel_lengths, weight_norm
from ._transformable import transformable
from ._variables import promote_dtype
from ._wrapped import KERNELS, Path, Predicate, call_with, one_for_each


class WeightNorm(nnx.Module):
    """Weight norm of the wrapped layer, with all arguments of `flax.nnx.WeightNorm`.

    Computes `jaxnorm.weight_norm` of each chosen weight in every call. The layer's own parameters keep their
    paths and values; ``scales`` holds an `nnx.Param` for each chosen weight, keyed by its path.

    Args:
        layer_instance: the layer to wrap.
        feature_axes: the output axes of a weight, which are not reduced. None or () computes one length over
            all axes.
        use_scale: whether to multiply by learned scales.
        scale_init: initializer for the scales. None starts from the lengths of the weights, so that wrapping
            the layer does not change its output, as in PyTorch.
        epsilon: added to the squared length.
        dtype: dtype of the normalized weights; None is the dtype that weights and scales promote to.
        param_dtype: dtype of the scales.
        variable_filter: selects the weights to normalize, by an NNX filter on path and variable. The default
            selects the kernels.
        promote_dtype: ignored, as in Flax.
        rngs: random streams for the initializer.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> rngs = nnx.Rngs(0)
        >>> layer = jnx.WeightNorm(nnx.Linear(8, 3, rngs=rngs), rngs=rngs)
        >>> y = layer(jax.random.normal(jax.random.key(0), (4, 8)))
        >>> print(y.shape, layer.scales[("kernel",)].shape)
        (4, 3) (3,)
    """

    @explained
    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Axes | None = -1,
        use_scale: bool = True,
        scale_init: nnx.Initializer | None = initializers.ones,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        variable_filter: nnx.filterlib.Filter = KERNELS,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.layer_instance = layer_instance
        self.feature_axes: Axes = () if feature_axes is None else feature_axes
        self.use_scale = use_scale
        self.scale_init = scale_init
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        check_fields(own_arguments(self, WeightNorm.__init__))
        self.variable_filter: Predicate = nnx.filterlib.to_predicate(variable_filter)
        self.promote_dtype = promote_dtype
        self.scales: dict[Path, nnx.Param[jax.Array]] | None = nnx.data(None)
        if use_scale:

            def make(weight: jax.Array) -> jax.Array:
                init = scale_init or kernel_lengths(weight, self.feature_axes)
                return init(rngs.params(), feature_shape(weight, self.feature_axes), param_dtype)

            self.scales = one_for_each(layer_instance, self.variable_filter, make)

    @transformable
    def __call__(
        self, x: jax.Array, *args: Any, use_running_average: bool | None = None, **kwargs: Any
    ) -> Any:
        """Calls the layer with normalized weights.

        Args:
            x: first argument for the layer.
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.weight_norm`.
        """
        return call_with(
            self._normalized, self.layer_instance, use_running_average, x, *args, **kwargs
        )

    def _normalized(self, path: Path, weight: nnx.Param) -> jax.Array | None:
        if not self.variable_filter(path, weight):
            return None
        scale = None if self.scales is None else self.scales[path][...]
        return weight_norm(
            weight[...],
            scale,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
