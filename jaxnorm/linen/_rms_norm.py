"""`RMSNorm` as a Linen module."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, feature_shape
from ..core.calling._explained import explaining_fields
from ..norms.sample._rms_norm import rms_norm
from ._variables import Checked, devices_of, scale_of


class RMSNorm(Checked):
    """RMS norm with all fields of `flax.linen.RMSNorm`.

    Computes `jaxnorm.rms_norm`. The parameter ``scale`` is in the collection ``params`` and has the shape of
    ``feature_axes``.

    Attributes:
        epsilon: added to the mean square.
        dtype: dtype of the result; None is the dtype that the input and the scale promote to.
        param_dtype: dtype of the scale.
        use_scale: whether to multiply by a learned scale.
        scale_init: initializer for the scale.
        reduction_axes: the axes to reduce over.
        feature_axes: the axes of the learned scale.
        axis_name: mapped axis or axes over which the features are sharded. Ignored in ``init``.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. RMS norm computes no variance.
        force_float32_reductions: ignored, accepted for compatibility with Flax. Statistics are always
            computed in float32 or wider.
        scale_offset: added to the scale. For Gemma's 1 + scale, use 1 with a ``scale_init`` of zeros.
        fraction: fraction of the features, starting with the first, over which to compute the mean square.
        scale_after_cast: whether to round to the dtype of the input before the scale is applied, as Llama and
            T5 do in half precision.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, applied after the norm in the same pass;
            or None.

    Example:
        >>> import jax
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 10, 512))
        >>> y, variables = jnl.RMSNorm().init_with_output(jax.random.key(1), x)
        >>> jax.tree.map(jax.numpy.shape, variables)
        {'params': {'scale': (512,)}}
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: initializers.Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: AxisIndexGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float | jax.Array = dataclasses.field(default=0.0, kw_only=True)
    fraction: float = dataclasses.field(default=1.0, kw_only=True)
    scale_after_cast: bool = dataclasses.field(default=False, kw_only=True)
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
        """Normalizes ``x``.

        Args:
            x: activations of any rank.
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: ignored; accepted so that this layer can replace batch norm.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.rms_norm`.
        """
        x = jnp.asarray(x)
        shape = feature_shape(x, self.feature_axes)
        return rms_norm(
            x,
            scale_of(self, shape),
            reduction_axes=self.reduction_axes,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            scale_offset=self.scale_offset,
            scale_after_cast=self.scale_after_cast,
            fraction=self.fraction,
            mask=mask,
            activation=self.activation,
            dtype=self.dtype,
            **devices_of(self),
        )
