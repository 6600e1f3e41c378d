"""EvoNorm-S2, a combined norm and activation (Liu et al., 2020, https://arxiv.org/abs/2004.02967)."""

from dataclasses import dataclass

import jax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, one_axis
from ...core._normalize import normalize
from ...core._precision import check_real
from ...core._residuals import rematerialized
from ...core.calling._public import public
from .._shared._evo_norm import OfGroups, mean_square
from .._shared._prepare import operands
from .._shared._recipe import Call, State, scale_and_bias
from ._group_norm import moments_of_groups


@public
@rematerialized
def evo_norm_s2(
    x: jax.Array,
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
    """EvoNorm-S2: divides a swish by the root mean square of the group.

        y = x · sigmoid(x) / sqrt(ρ² + ε) · scale + bias

    ρ² is the mean square of each group of channels of each example, as in `group_norm`; no mean is
    subtracted. The swish is the nonlinearity, so no activation follows.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype, batch axis first.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        num_groups: number of groups; must divide the number of channels.
        group_size: channels per group, as an alternative to ``num_groups``, which must then be None.
        feature_axes: the channel axis (exactly one).
        epsilon: ε, added to the mean square; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the positions are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale`` and ``bias`` promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If the groups do not divide the channels evenly, or if another argument is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.full((2, 8, 8, 4), 3.0)
        >>> y = jn.evo_norm_s2(x, num_groups=2)
        >>> print(jnp.allclose(y, jax.nn.sigmoid(3.0), atol=1e-5))
        True
    """
    check_real("evo_norm_s2", "group_norm", x, scale, bias)
    given = {"scale": scale, "bias": bias}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask)
    channel = one_axis(feature_axes, o.x.ndim, "feature_axes", "the channels")
    moments = moments_of_groups(
        o.x, channel, num_groups, group_size, None, axis_name, axis_index_groups
    )
    m = moments(o.x, o.mask, o.narrow)
    y = normalize(jax.nn.silu(o.x), None, mean_square(m), *o.parameters, epsilon=epsilon)
    return y.astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class EvoNormS2Recipe(OfGroups):
    """EvoNorm-S2 (`jaxnorm.evo_norm_s2`): group norm and activation in one layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.EvoNormS2(num_groups=2)
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.EvoNormS2(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias scale (2, 8, 8, 4)
    """

    def _activated(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        affine = scale_and_bias(variables)
        return evo_norm_s2(x, *affine, **self._options(call, evo_norm_s2)), {}
