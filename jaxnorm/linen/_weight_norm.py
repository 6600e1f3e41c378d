"""`WeightNorm` as a Linen module."""

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
from ..norms.weight._weight_norm import kernel_lengths, weight_norm
from ._variables import Checked
from ._wrapped import call_with, is_chosen, name_in


class WeightNorm(Checked):
    """Weight norm of the wrapped layer, with all fields of `flax.linen.WeightNorm`.

    Computes `jaxnorm.weight_norm` of each chosen weight. The layer's own parameters keep their paths and
    values; each ``scale`` is a parameter named after the path of its weight. (Flax overwrites the initial
    kernel with the normalized one.)

    Attributes:
        layer_instance: the layer to wrap.
        epsilon: added to the squared length.
        dtype: dtype of the normalized weights; None is the dtype that weights and scales promote to.
        param_dtype: dtype of the scales.
        use_scale: whether to multiply by learned scales.
        scale_init: initializer for the scales. None starts from the lengths of the weights, so that wrapping
            the layer does not change its output, as in PyTorch.
        feature_axes: the output axes of a weight, which are not reduced. None or () computes one length over
            all axes.
        variable_filter: selects the weights to normalize, by strings in their paths. None or an empty filter
            selects all.

    Example:
        >>> import jax, flax.linen as nn
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 8))
        >>> layer = jnl.WeightNorm(nn.Dense(3))
        >>> y, variables = layer.init_with_output(jax.random.key(1), x)
        >>> for name, shape in jax.tree.map(jax.numpy.shape, variables)["params"].items():
        ...     print(name, shape)
        layer_instance {'bias': (3,), 'kernel': (8, 3)}
        layer_instance/kernel/scale (3,)
    """

    layer_instance: nn.Module
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: initializers.Initializer | None = initializers.ones
    feature_axes: Axes | None = -1
    variable_filter: Iterable[str] | None = dataclasses.field(default_factory=lambda: {"kernel"})

    @nn.compact
    @explaining_fields
    def __call__(self, *args: Any, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with normalized weights.

        Args:
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.weight_norm`.
        """
        return call_with(
            self._normalized, self.layer_instance, use_running_average, *args, **kwargs
        )

    @nn.nowrap
    def _normalized(self, path: str, weight: jax.Array) -> jax.Array | None:
        if not is_chosen(path, self.variable_filter):
            return None
        axes = () if self.feature_axes is None else self.feature_axes
        scale = None
        if self.use_scale:
            shape = feature_shape(weight, axes)
            init = self.scale_init or kernel_lengths(weight, axes)
            name = name_in(self, "params", path, "scale")
            scale = self.param(name, init, shape, self.param_dtype)
        return weight_norm(weight, scale, feature_axes=axes, epsilon=self.epsilon, dtype=self.dtype)
