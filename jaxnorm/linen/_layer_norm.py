"""`LayerNorm` as a Linen module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._axes import Axes, feature_shape
from ..core._explained import explaining_fields
from ..norms._layer_norm import layer_norm
from ._variables import Checked, bias_of, devices_of, scale_of


class LayerNorm(Checked):
    """Layer norm: `flax.linen.LayerNorm`, field for field. Computes `jaxnorm.layer_norm`.

    Parameters ``scale`` and ``bias`` live in the collection ``params``, of the shape of ``feature_axes``.

    Attributes:
        epsilon: added to the variance.
        dtype: of the result; None is what the input and the parameters promote to.
        param_dtype: of scale and bias.
        use_bias: whether there is a bias.
        use_scale: whether there is a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        reduction_axes: the axes to take statistics over.
        feature_axes: the axes along which scale and bias lie.
        axis_name: one or several mapped axes over which the features are split. Not used in ``init``.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        force_float32_reductions: accepted likewise: statistics are in float32 or wider.

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
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

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
            ValueError: anything that `jaxnorm.layer_norm` refuses.
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
            dtype=self.dtype,
            **devices_of(self),
        )
