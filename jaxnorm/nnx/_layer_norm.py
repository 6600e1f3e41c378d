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
from ..core._arguments import check_fields
from ..core._axes import Axes
from ..core._explained import explained
from ..norms._layer_norm import layer_norm
from ._transformable import transformable
from ._variables import Features, parameter, promote_dtype, promoted, shape_of


class LayerNorm(nnx.Module):
    """Layer norm: `flax.nnx.LayerNorm`, argument for argument. Computes `jaxnorm.layer_norm`.

    ``scale`` and ``bias`` are `nnx.Param` of the shape of ``feature_axes``.

    Args:
        num_features: the feature shape: a size, or several where ``feature_axes`` has several.
        epsilon: added to the variance.
        dtype: of the result; None is what the input and the parameters promote to.
        param_dtype: of scale and bias.
        use_bias: whether there is a bias.
        use_scale: whether there is a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        reduction_axes: the axes to take statistics over.
        feature_axes: the axes along which scale and bias lie.
        axis_name: one or several mapped axes over which the features are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        promote_dtype: what to do to input, scale and bias before anything else, in place of the rule of
            ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: of the variable of the bias, such as its sharding.
        scale_metadata: of the variable of the scale.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 10, 512))
        >>> y = jnx.LayerNorm(512, rngs=nnx.Rngs(0))(x)
        >>> print(y.std().round(3))
        1.0
    """

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
        check_fields(vars(self))
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
            mask: True counts; broadcastable to ``x``.
            use_running_average: ignored; batch norm, which may stand here instead, reads it.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: anything that `jaxnorm.layer_norm` refuses.
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
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            dtype=self.dtype,
        )
