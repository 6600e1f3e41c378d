"""`InstanceNorm` as a Linen module."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._axes import Axes, feature_shape
from ..core._explained import explaining_fields
from ..norms._batch_norm import batch_norm_inference
from ..norms._instance_norm import instance_norm, tracked_instance_norm
from ._variables import Checked, RunningVariables, bias_of, devices_of, is_evaluating, scale_of


class InstanceNorm(Checked):
    """Instance norm: `flax.linen.InstanceNorm`, field for field. Computes `jaxnorm.instance_norm`.

    Parameters ``scale`` and ``bias`` live in the collection ``params``, of the shape of ``feature_axes``.
    With ``track_running_stats`` there are a running ``mean`` and ``var`` in ``batch_stats`` as well:
    training computes `jaxnorm.tracked_instance_norm`, evaluation `jaxnorm.batch_norm_inference`.

    Attributes:
        epsilon: added to the variance.
        dtype: of the result; None is what the input and the parameters promote to.
        param_dtype: of scale and bias.
        use_bias: whether there is a bias.
        use_scale: whether there is a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        feature_axes: the axes that are kept besides the first, which is the batch.
        axis_name: one or several mapped axes over which positions are split. Not used in ``init``.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        force_float32_reductions: False stores running statistics in ``param_dtype``. They are computed in
            float32 or wider all the same.
        track_running_stats: True keeps running statistics, with which evaluation normalizes.
        use_running_average: evaluation (True) or training (False), if there are running statistics. Set it
            here or in the call, not in both.
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None is
            the plain average of all batches, counted in ``batch_stats/count``.
        unbiased: the running variance gets each instance's variance times n / (n - 1), as PyTorch's does.

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
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    track_running_stats: bool = dataclasses.field(default=False, kw_only=True)
    use_running_average: bool | None = dataclasses.field(default=None, kw_only=True)
    momentum: float | jax.Array | None = dataclasses.field(default=0.99, kw_only=True)
    unbiased: bool = dataclasses.field(default=False, kw_only=True)

    @nn.compact
    @explaining_fields
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
            use_running_average: evaluation (True) or training (False), if there are running statistics and
                the module does not say.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: there are running statistics and ``use_running_average`` is given twice or not at
                all, or anything that `jaxnorm.instance_norm` refuses.
        """
        x = jnp.asarray(x)
        shape = feature_shape(x, self.feature_axes)
        options = {
            "feature_axes": self.feature_axes,
            "epsilon": self.epsilon,
            "mask": mask,
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
