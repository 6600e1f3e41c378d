"""`RMSNorm` as a Linen module."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._axes import Axes, feature_shape
from ..core._explained import explaining_fields
from ..norms._rms_norm import rms_norm
from ._variables import Checked, devices_of, scale_of


class RMSNorm(Checked):
    """RMS norm: `flax.linen.RMSNorm`, field for field. Computes `jaxnorm.rms_norm`.

    The parameter ``scale`` lives in the collection ``params``, of the shape of ``feature_axes``.

    Attributes:
        epsilon: added to the mean square.
        dtype: of the result; None is what the input and the scale promote to.
        param_dtype: of the scale.
        use_scale: whether there is a scale.
        scale_init: initializer of the scale.
        reduction_axes: the axes to take the mean square over.
        feature_axes: the axes along which the scale lies.
        axis_name: one or several mapped axes over which the features are split. Not used in ``init``.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: there is one variance.
        force_float32_reductions: accepted likewise: statistics are in float32 or wider.
        scale_offset: added to the scale: 1 for the 1 + scale of Gemma, with ``scale_init`` of zeros.
        fraction: of the features, the first ones, whose mean square is taken.

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
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    scale_offset: float | jax.Array = dataclasses.field(default=0.0, kw_only=True)
    fraction: float = dataclasses.field(default=1.0, kw_only=True)

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
            mask: True counts; broadcastable to ``x``.
            use_running_average: ignored; batch norm, which may stand here instead, needs it.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: anything that `jaxnorm.rms_norm` refuses.
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
            fraction=self.fraction,
            mask=mask,
            dtype=self.dtype,
            **devices_of(self),
        )
