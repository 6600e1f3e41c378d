"""`InstanceNorm` as an NNX module."""

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
from ..norms._batch_norm import batch_norm_inference
from ..norms._instance_norm import instance_norm, tracked_instance_norm
from ._transformable import transformable
from ._variables import (
    Features,
    is_evaluating,
    make_running_stats,
    parameter,
    promote_dtype,
    promoted,
    read_running_stats,
    shape_of,
    write_running_stats,
)


class InstanceNorm(nnx.Module):
    """Instance norm: `flax.nnx.InstanceNorm`, argument for argument. Computes `jaxnorm.instance_norm`.

    ``scale`` and ``bias`` are `nnx.Param` of the shape of ``feature_axes``. With ``track_running_stats``
    there are a running ``mean`` and ``var`` (`nnx.BatchStat`) as well: training computes
    `jaxnorm.tracked_instance_norm`, evaluation `jaxnorm.batch_norm_inference`.

    Args:
        num_features: the feature shape: a size, or several where ``feature_axes`` has several.
        epsilon: added to the variance.
        dtype: of the result; None is what the input and the parameters promote to.
        param_dtype: of scale and bias. If complex, the running mean is too.
        use_bias: whether there is a bias.
        use_scale: whether there is a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        feature_axes: the axes that are kept besides the first, which is the batch.
        axis_name: one or several mapped axes over which positions are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        promote_dtype: what to do to input, scale and bias before anything else, in place of the rule of
            ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: of the variable of the bias, such as its sharding.
        scale_metadata: of the variable of the scale.
        track_running_stats: True keeps running statistics, with which evaluation normalizes.
        use_running_average: evaluation (True) or training (False), if there are running statistics. The
            call may say otherwise.
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None is
            the plain average of all batches, counted in ``count``.
        unbiased: the running variance gets each instance's variance times n / (n - 1), as PyTorch's does.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y = jnx.InstanceNorm(16, rngs=nnx.Rngs(0))(x)
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
        feature_axes: Axes = -1,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisIndexGroups | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] | None = None,
        scale_metadata: Mapping[str, Any] | None = None,
        track_running_stats: bool = False,
        use_running_average: bool | None = False,
        momentum: float | jax.Array | None = 0.99,
        unbiased: bool = False,
    ) -> None:
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.feature_axes = feature_axes
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.track_running_stats = track_running_stats
        self.use_running_average = use_running_average
        self.momentum = momentum
        self.unbiased = unbiased
        check_fields(vars(self))
        shape = shape_of(num_features)
        make_running_stats(self, shape, tracked=track_running_stats)
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
        """Normalizes ``x``, and in training updates the running statistics, if there are any.

        Args:
            x: activations, whose first axis is the batch.
            mask: True counts; broadcastable to ``x``. In evaluation, too, a masked NaN or infinity
                reaches nothing else.
            use_running_average: evaluation (True) or training (False), whatever the module says; not read
                without running statistics.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: there are running statistics and nobody says ``use_running_average``, or anything
                that `jaxnorm.instance_norm` refuses.
        """
        x, scale, bias = promoted(self, jnp.asarray(x), "scale", "bias")
        options = {
            "feature_axes": self.feature_axes,
            "epsilon": self.epsilon,
            "mask": mask,
            "dtype": self.dtype,
        }
        devices = {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
        if not self.track_running_stats:
            return instance_norm(x, scale, bias, **devices, **options)
        stats = read_running_stats(self)
        if is_evaluating(self, use_running_average):
            return batch_norm_inference(x, stats, scale, bias, **options)
        y, updated = tracked_instance_norm(
            x,
            stats,
            scale,
            bias,
            momentum=self.momentum,
            unbiased=self.unbiased,
            **devices,
            **options,
        )
        write_running_stats(self, updated)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
            use_running_average: evaluation (True) or training (False); None leaves it as it is.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
