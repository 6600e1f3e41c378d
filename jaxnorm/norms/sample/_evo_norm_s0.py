"""EvoNorm-S0, a combined norm and activation (Liu et al., 2020, https://arxiv.org/abs/2004.02967)."""

from dataclasses import dataclass

import jax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, one_axis
from ...core._normalize import normalize
from ...core._precision import check_real
from ...core._residuals import rematerialized
from ...core.calling._public import public
from .._shared._evo_norm import OfGroups, Sloped
from .._shared._prepare import operands
from .._shared._recipe import Call, State, scale_and_bias
from ._group_norm import moments_of_groups


@public
@rematerialized
def evo_norm_s0(
    x: jax.Array,
    v: jax.Array | None,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """EvoNorm-S0: divides a swish by the standard deviation of the group.

        y = x · sigmoid(v x) / sqrt(σ² + ε) · scale + bias

    σ² is the variance of each group of channels of each example, as in `group_norm`; no mean is subtracted.
    The swish is the nonlinearity, so no activation follows.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype, batch axis first.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        v: learned coefficient of ``x``, with the shape of the feature axes; None omits the sigmoid.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        num_groups: number of groups; must divide the number of channels.
        group_size: channels per group, as an alternative to ``num_groups``, which must then be None.
        feature_axes: the channel axis (exactly one).
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the positions are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x`` and the parameters promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If the groups do not divide the channels evenly, or if another argument is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 3 * jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
        >>> y = jn.evo_norm_s0(x, jnp.ones(4), num_groups=2)
        >>> print(jnp.allclose(y, jn.evo_norm_s0(2 * x, jnp.ones(4) / 2, num_groups=2)))
        True
    """
    check_real("evo_norm_s0", "group_norm", x, v, scale, bias)
    given = {"v": v, "scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask)
    channel = one_axis(feature_axes, o.x.ndim, "feature_axes", "the channels")
    moments = moments_of_groups(
        o.x, channel, num_groups, group_size, None, axis_name, axis_index_groups
    )
    m = moments(o.x, o.mask, o.narrow)
    slope, *affine = o.parameters
    swish = o.x if slope is None else o.x * jax.nn.sigmoid(slope * o.x)
    return normalize(swish, None, m.var, *affine, epsilon=epsilon).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class EvoNormS0Recipe(Sloped, OfGroups):
    """EvoNorm-S0 (`jaxnorm.evo_norm_s0`): group norm and activation in one layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.EvoNormS0(num_groups=2)
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,), 'v': (4,)}}
        >>> layer = jnx.EvoNormS0(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias scale v (2, 8, 8, 4)
    """

    def _activated(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        given = (x, variables["v"], *scale_and_bias(variables))
        return evo_norm_s0(*given, **self._options(call, evo_norm_s0)), {}
