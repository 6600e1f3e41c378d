"""`LayerNorm` as an NNX module."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from flax.typing import PromoteDtypeFn
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes
from ..core.calling._arguments import check_fields, own_arguments
from ..core.calling._explained import explained
from ..norms.sample._layer_norm import layer_norm
from ._transformable import transformable
from ._variables import Features, parameter, promote_dtype, promoted, shape_of


class LayerNorm(nnx.Module):
    """Layer norm with all arguments of `flax.nnx.LayerNorm`.

    Computes `jaxnorm.layer_norm`. ``scale`` and ``bias`` are `nnx.Param` with the shape of ``feature_axes``.

    Args:
        num_features: the feature shape: one size, or a sequence with one size per axis in ``feature_axes``.
        epsilon: added to the variance.
        dtype: dtype of the result; None is the dtype that the input and the parameters promote to.
        param_dtype: dtype of scale and bias.
        use_bias: whether to add a learned bias.
        use_scale: whether to multiply by a learned scale.
        bias_init: initializer for the bias.
        scale_init: initializer for the scale.
        reduction_axes: the axes to reduce over.
        feature_axes: the axes of the learned scale and bias.
        axis_name: mapped axis or axes over which the features are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. The variance is always computed in a
            numerically stable way that is just as fast.
        promote_dtype: function that promotes input, scale and bias first. The default promotes as described
            under ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: metadata of the bias variable, such as its sharding.
        scale_metadata: metadata of the scale variable.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, applied after the norm in the same pass;
            or None.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 10, 512))
        >>> y = jnx.LayerNorm(512, rngs=nnx.Rngs(0))(x)
        >>> print(y.std().round(3))
        1.0
    """

    scale: nnx.Param[jax.Array]  # None if use_scale is False
    bias: nnx.Param[jax.Array]  # None if use_bias is False

    @explained
    def __init__(
        self,
        num_features: Features,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = initializers.zeros,
        scale_init: nnx.Initializer = initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisIndexGroups | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] | None = None,
        scale_metadata: Mapping[str, Any] | None = None,
        activation: str | None = None,
    ) -> None:
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.activation = activation
        check_fields(own_arguments(self, LayerNorm.__init__))
        shape = shape_of(num_features)
        self.scale = parameter(use_scale, scale_init, shape, param_dtype, rngs, scale_metadata)
        self.bias = parameter(use_bias, bias_init, shape, param_dtype, rngs, bias_metadata)

    @transformable
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> jax.Array:
        """Normalizes ``x``.

        Args:
            x: activations of any rank.
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: ignored; accepted so that this layer can replace batch norm.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.layer_norm`.
        """
        x, scale, bias = promoted(self, jnp.asarray(x), "scale", "bias")
        return layer_norm(
            x,
            scale,
            bias,
            reduction_axes=self.reduction_axes,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=mask,
            activation=self.activation,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            dtype=self.dtype,
        )
