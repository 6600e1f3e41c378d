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
from ..core._arguments import check_fields
from ..core._axes import Axes
from ..core._explained import explained
from ..norms._group_norm import group_norm, grouping
from ._transformable import transformable
from ._variables import parameter, promote_dtype, promoted


class GroupNorm(nnx.Module):
    """Group norm: `flax.nnx.GroupNorm`, argument for argument. Computes `jaxnorm.group_norm`.

    ``scale`` and ``bias`` are `nnx.Param`, one a channel.

    Args:
        num_features: number of channels.
        num_groups: number of groups; divides the number of channels.
        group_size: channels of a group, instead of ``num_groups`` (which is then None).
        epsilon: added to the variance.
        dtype: of the result; None is what the input and the parameters promote to.
        param_dtype: of scale and bias.
        use_bias: whether there is a bias.
        use_scale: whether there is a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        reduction_axes: the axes to take statistics over, the channel axis included; None is all but the
            first.
        axis_name: one or several mapped axes over which positions are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        promote_dtype: what to do to input, scale and bias before anything else, in place of the rule of
            ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: of the variable of the bias, such as its sharding.
        scale_metadata: of the variable of the scale.
        feature_axes: the channel axis, one: -1 for channels last, 1 for channels first.

    Raises:
        ValueError: the groups do not divide the channels, or both or neither of ``num_groups`` and
            ``group_size`` are given.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y = jnx.GroupNorm(16, num_groups=4, rngs=nnx.Rngs(0))(x)
        >>> print(y.std().round(3))
        1.0
    """

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
        check_fields(vars(self))
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
            x: activations, whose first axis is the batch if ``reduction_axes`` is None.
            mask: True counts; broadcastable to ``x``.
            use_running_average: ignored; batch norm, which may stand here instead, reads it.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: anything that `jaxnorm.group_norm` refuses.
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
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            dtype=self.dtype,
        )
