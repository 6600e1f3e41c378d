"""`GroupNorm` as an NNX module."""

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
from ..norms.sample._group_norm import group_norm, grouping
from ._transformable import transformable
from ._variables import parameter, promote_dtype, promoted


class GroupNorm(nnx.Module):
    """Group norm with all arguments of `flax.nnx.GroupNorm`.

    Computes `jaxnorm.group_norm`. ``scale`` and ``bias`` are `nnx.Param` with one value per channel.

    Args:
        num_features: number of channels.
        num_groups: number of groups; must divide the number of channels.
        group_size: channels per group, instead of ``num_groups`` (which must then be None).
        epsilon: added to the variance.
        dtype: dtype of the result; None is the dtype that the input and the parameters promote to.
        param_dtype: dtype of scale and bias.
        use_bias: whether to add a learned bias.
        use_scale: whether to multiply by a learned scale.
        bias_init: initializer for the bias.
        scale_init: initializer for the scale.
        reduction_axes: the axes to reduce over, including the channel axis; None is all but the first.
        axis_name: mapped axis or axes over which positions are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. The variance is always computed in a
            numerically stable way that is just as fast.
        promote_dtype: function that promotes input, scale and bias first. The default promotes as described
            under ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: metadata of the bias variable, such as its sharding.
        scale_metadata: metadata of the scale variable.
        feature_axes: the channel axis: -1 for channels last, 1 for channels first.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, applied after the norm in the same pass;
            or None.

    Raises:
        ValueError: If the number of groups does not divide the number of channels, or if both or neither of
            ``num_groups`` and ``group_size`` are given.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y = jnx.GroupNorm(16, num_groups=4, rngs=nnx.Rngs(0))(x)
        >>> print(y.std().round(3))
        1.0
    """

    num_groups: int
    group_size: int | None
    scale: nnx.Param[jax.Array]  # None if use_scale is False
    bias: nnx.Param[jax.Array]  # None if use_bias is False

    @explained
    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = initializers.zeros,
        scale_init: nnx.Initializer = initializers.ones,
        reduction_axes: Axes | None = None,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisIndexGroups | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] | None = None,
        scale_metadata: Mapping[str, Any] | None = None,
        feature_axes: Axes = -1,
        activation: str | None = None,
    ) -> None:
        self.num_features = num_features
        self.num_groups, self.group_size = grouping(num_features, num_groups, group_size)
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.reduction_axes = reduction_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.feature_axes = feature_axes
        self.activation = activation
        check_fields(own_arguments(self, GroupNorm.__init__))
        shape = (num_features,)
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
            x: activations; if ``reduction_axes`` is None, the first axis is the batch.
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: ignored; accepted so that this layer can replace batch norm.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.group_norm`.
        """
        x, scale, bias = promoted(self, jnp.asarray(x), "scale", "bias")
        return group_norm(
            x,
            scale,
            bias,
            num_groups=self.num_groups,
            feature_axes=self.feature_axes,
            reduction_axes=self.reduction_axes,
            epsilon=self.epsilon,
            mask=mask,
            activation=self.activation,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            dtype=self.dtype,
        )
