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
from ..core._axes import Axes
from ..core.calling._arguments import check_fields, own_arguments
from ..core.calling._explained import explained
from ..norms._shared._running_norm import RunningNorm
from ..norms.batch._batch_norm import batch_norm_inference
from ..norms.sample._instance_norm import instance_norm, tracked_instance_norm
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
    """Instance norm with all arguments of `flax.nnx.InstanceNorm`.

    Computes `jaxnorm.instance_norm`. ``scale`` and ``bias`` are `nnx.Param` with the shape of
    ``feature_axes``. With ``track_running_stats``, there is also a running ``mean`` and ``var``
    (`nnx.BatchStat`); training then computes `jaxnorm.tracked_instance_norm`, and evaluation
    `jaxnorm.batch_norm_inference`.

    Args:
        num_features: the feature shape: one size, or a sequence with one size per axis in ``feature_axes``.
        epsilon: added to the variance.
        dtype: dtype of the result; None is the dtype that the input and the parameters promote to.
        param_dtype: dtype of scale and bias. If it is complex, so is the running mean.
        use_bias: whether to add a learned bias.
        use_scale: whether to multiply by a learned scale.
        bias_init: initializer for the bias.
        scale_init: initializer for the scale.
        feature_axes: the feature axes. Statistics are reduced over all other axes but the first, the batch.
        axis_name: mapped axis or axes over which positions are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. The variance is always computed in a
            numerically stable way that is just as fast.
        promote_dtype: function that promotes input, scale and bias first. The default promotes as described
            under ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: metadata of the bias variable, such as its sharding.
        scale_metadata: metadata of the scale variable.
        track_running_stats: if True, keeps running statistics and normalizes with them in evaluation.
        use_running_average: True for evaluation, False for training; ignored without running statistics. The
            call can override it.
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None weights
            all batches equally and counts them in ``count``.
        unbiased: whether to multiply each instance's variance by n / (n - 1) for the running variance, as
            PyTorch does.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, applied after the norm in the same pass;
            or None.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y = jnx.InstanceNorm(16, rngs=nnx.Rngs(0))(x)
        >>> print(y.std().round(3))
        1.0
    """

    scale: nnx.Param[jax.Array]  # None if use_scale is False
    bias: nnx.Param[jax.Array]  # None if use_bias is False
    mean: nnx.BatchStat[jax.Array]  # None without running statistics, like var
    var: nnx.BatchStat[jax.Array]
    count: nnx.BatchStat[jax.Array] | None

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
        activation: str | None = None,
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
        self.activation = activation
        check_fields(own_arguments(self, InstanceNorm.__init__))
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
        """Normalizes ``x`` and, in training, updates the running statistics if there are any.

        Args:
            x: activations; the first axis is the batch.
            mask: True for the elements to include; broadcastable to ``x``. Masked NaNs and infinities affect
                no other output or gradient, in training or evaluation.
            use_running_average: True for evaluation, False for training; overrides the module's setting.
                Ignored without running statistics.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If there are running statistics and ``use_running_average`` is None in both the module
                and the call, or if an argument is invalid for `jaxnorm.instance_norm`.
        """
        x, scale, bias = promoted(self, jnp.asarray(x), "scale", "bias")
        options = {
            "feature_axes": self.feature_axes,
            "epsilon": self.epsilon,
            "mask": mask,
            "activation": self.activation,
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

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        if not self.track_running_stats:
            return None
        return RunningNorm(
            self.feature_axes, self.epsilon, self.momentum, self.unbiased, of_batch=False
        )

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets ``use_running_average``; called by `nnx.view`.

        Args:
            use_running_average: True for evaluation, False for training; None leaves the setting unchanged.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
