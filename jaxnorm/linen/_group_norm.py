"""`GroupNorm` as a Linen module."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._axes import Axes, feature_shape
from ..core._explained import explaining_fields
from ..norms._group_norm import group_norm
from ._variables import Checked, bias_of, devices_of, scale_of


class GroupNorm(Checked):
    """Group norm: `flax.linen.GroupNorm`, field for field. Computes `jaxnorm.group_norm`.

    Parameters ``scale`` and ``bias`` live in the collection ``params``, one a channel.

    Attributes:
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
        axis_name: one or several mapped axes over which positions are split. Not used in ``init``.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        force_float32_reductions: accepted likewise: statistics are in float32 or wider.
        feature_axes: the channel axis, one: -1 for channels last, 1 for channels first.

    Example:
        >>> import jax
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 16))
        >>> y, variables = jnl.GroupNorm(num_groups=4).init_with_output(jax.random.key(1), x)
        >>> jax.tree.map(jax.numpy.shape, variables)
        {'params': {'bias': (16,), 'scale': (16,)}}
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: initializers.Initializer = initializers.zeros
    scale_init: initializers.Initializer = initializers.ones
    reduction_axes: Axes | None = None
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    feature_axes: Axes = dataclasses.field(default=-1, kw_only=True)

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
            x: activations, whose first axis is the batch if ``reduction_axes`` is None.
            mask: True counts; broadcastable to ``x``.
            use_running_average: ignored; batch norm, which may stand here instead, needs it.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: anything that `jaxnorm.group_norm` refuses.
        """
        x = jnp.asarray(x)
        shape = feature_shape(x, self.feature_axes)
        return group_norm(
            x,
            scale_of(self, shape),
            bias_of(self, shape),
            num_groups=self.num_groups,
            group_size=self.group_size,
            feature_axes=self.feature_axes,
            reduction_axes=self.reduction_axes,
            epsilon=self.epsilon,
            mask=mask,
            dtype=self.dtype,
            **devices_of(self),
        )
