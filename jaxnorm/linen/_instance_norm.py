"""`InstanceNorm` as a Linen module."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, feature_shape
from ..core.calling._explained import explaining_fields
from ..norms._shared._running_norm import RunningNorm
from ..norms.batch._batch_norm import batch_norm_inference
from ..norms.sample._instance_norm import instance_norm, tracked_instance_norm
from ._variables import Checked, RunningVariables, bias_of, devices_of, is_evaluating, scale_of


class InstanceNorm(Checked):
    """Instance norm with all fields of `flax.linen.InstanceNorm`.

    Computes `jaxnorm.instance_norm`. The parameters ``scale`` and ``bias`` are in the collection ``params``
    and have the shape of ``feature_axes``. With ``track_running_stats``, there is also a running ``mean`` and
    ``var`` in ``batch_stats``; training then computes `jaxnorm.tracked_instance_norm`, and evaluation
    `jaxnorm.batch_norm_inference`.

    Attributes:
        epsilon: added to the variance.
        dtype: dtype of the result; None is the dtype that the input and the parameters promote to.
        param_dtype: dtype of scale and bias.
        use_bias: whether to add a learned bias.
        use_scale: whether to multiply by a learned scale.
        bias_init: initializer for the bias.
        scale_init: initializer for the scale.
        feature_axes: the feature axes. Statistics are reduced over all other axes but the first, the batch.
        axis_name: mapped axis or axes over which positions are sharded. Ignored in ``init``.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. The variance is always computed in a
            numerically stable way that is just as fast.
        force_float32_reductions: if False, stores the running statistics in ``param_dtype``. They are still
            computed in float32 or wider.
        track_running_stats: if True, keeps running statistics and normalizes with them in evaluation.
        use_running_average: True for evaluation, False for training; ignored without running statistics. Set
            it here or in the call, not in both.
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None weights
            all batches equally and counts them in ``batch_stats/count``.
        unbiased: whether to multiply each instance's variance by n / (n - 1) for the running variance, as
            PyTorch does.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, applied after the norm in the same pass;
            or None.

    Example:
        >>> import jax
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y, variables = jnl.InstanceNorm().init_with_output(jax.random.key(1), x)
        >>> jax.tree.map(jax.numpy.shape, variables)
        {'params': {'bias': (16,), 'scale': (16,)}}
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: initializers.Initializer = initializers.zeros
    scale_init: initializers.Initializer = initializers.ones
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: AxisIndexGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    track_running_stats: bool = dataclasses.field(default=False, kw_only=True)
    use_running_average: bool | None = dataclasses.field(default=None, kw_only=True)
    momentum: float | jax.Array | None = dataclasses.field(default=0.99, kw_only=True)
    unbiased: bool = dataclasses.field(default=False, kw_only=True)
    activation: str | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    @explaining_fields
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
            use_running_average: True for evaluation, False for training; set it here or in the module, not in
                both. Ignored without running statistics.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If there are running statistics and ``use_running_average`` is set in both the module
                and the call or in neither, or if an argument is invalid for `jaxnorm.instance_norm`.
        """
        x = jnp.asarray(x)
        shape = feature_shape(x, self.feature_axes)
        options = {
            "feature_axes": self.feature_axes,
            "epsilon": self.epsilon,
            "mask": mask,
            "activation": self.activation,
            "dtype": self.dtype,
        }
        parameters = scale_of(self, shape), bias_of(self, shape)
        if not self.track_running_stats:
            return instance_norm(x, *parameters, **devices_of(self), **options)
        evaluating = is_evaluating(self, use_running_average)
        stats = RunningVariables(self, x, shape, evaluating=evaluating)
        if evaluating:
            return batch_norm_inference(x, stats.read(), *parameters, **options)
        y, updated = tracked_instance_norm(
            x,
            stats.read(),
            *parameters,
            momentum=self.momentum,
            unbiased=self.unbiased,
            **devices_of(self),
            **options,
        )
        stats.write(updated)
        return y

    @nn.nowrap
    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        if not self.track_running_stats:
            return None
        return RunningNorm(
            self.feature_axes, self.epsilon, self.momentum, self.unbiased, of_batch=False
        )
