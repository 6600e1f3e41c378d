"""`LayerNorm` as a Linen module."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, feature_shape
from ..core.calling._explained import explaining_fields
from ..norms.sample._layer_norm import layer_norm
from ._variables import Checked, bias_of, devices_of, scale_of


class LayerNorm(Checked):
    """Layer norm with all fields of `flax.linen.LayerNorm`.

    Computes `jaxnorm.layer_norm`. The parameters ``scale`` and ``bias`` are in the collection ``params`` and
    have the shape of ``feature_axes``.

    Attributes:
        epsilon: added to the variance.
        dtype: dtype of the result; None is the dtype that the input and the parameters promote to.
        param_dtype: dtype of scale and bias.
        use_bias: whether to add a learned bias.
        use_scale: whether to multiply by a learned scale.
        bias_init: initializer for the bias.
        scale_init: initializer for the scale.
        reduction_axes: the axes to reduce over.
        feature_axes: the axes of the learned scale and bias.
        axis_name: mapped axis or axes over which the features are sharded. Ignored in ``init``.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. The variance is always computed in a
            numerically stable way that is just as fast.
        force_float32_reductions: ignored, accepted for compatibility with Flax. Statistics are always
            computed in float32 or wider.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, applied after the norm in the same pass;
            or None.

    Example:
        >>> import jax
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 10, 512))
        >>> y, variables = jnl.LayerNorm().init_with_output(jax.random.key(1), x)
        >>> jax.tree.map(jax.numpy.shape, variables)
        {'params': {'bias': (512,), 'scale': (512,)}}
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: initializers.Initializer = initializers.zeros
    scale_init: initializers.Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: AxisIndexGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
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
            ValueError: If an argument is invalid for `jaxnorm.layer_norm`.
        """
        x = jnp.asarray(x)
        shape = feature_shape(x, self.feature_axes)
        return layer_norm(
            x,
            scale_of(self, shape),
            bias_of(self, shape),
            reduction_axes=self.reduction_axes,
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=mask,
            activation=self.activation,
            dtype=self.dtype,
            **devices_of(self),
        )
