"""Filter response normalization (Singh and Krishnan, 2019, https://arxiv.org/abs/1911.09737)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, axes_of_instances, complement
from ...core._moments import reduce_moments_about_zero
from ...core._normalize import normalize
from ...core._precision import check_real
from ...core._residuals import rematerialized
from ...core.calling._public import public
from .._shared._prepare import operands
from .._shared._recipe import (
    Affine,
    Call,
    Initializer,
    Parameter,
    Shape,
    Shared,
    State,
    scale_and_bias,
)


@public
@rematerialized
def filter_response_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    threshold: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """FRN: divides each channel of each example by its root mean square, then applies its activation, TLU.

        y = max(x / sqrt(mean x² + ε) · scale + bias, τ)

    The mean is over all axes except the first (batch) axis and ``feature_axes``.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        threshold: τ of the thresholded linear unit (TLU), with the shape of the feature axes; None omits
            the unit.
        feature_axes: axes that are not reduced, besides the batch axis.
        epsilon: ε, added to the mean square; zero or positive. (timm's default is 1e-5. The paper
            learns it for feature maps with a single position: pass a traced value.)
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) over which the positions are sharded.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        dtype: dtype of ``y``; None means the dtype that ``x`` and the parameters promote to.

    Returns:
        ``y``, with the shape of ``x``.

    Raises:
        ValueError: If ``feature_axes`` includes axis 0, or if another argument is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.array([[[3.0], [-4.0]], [[30.0], [-40.0]]])  # two examples of one channel
        >>> print(jn.filter_response_norm(x, threshold=jnp.zeros(1)).squeeze().round(1) == 0.8)
        [[ True False]
         [ True False]]
    """
    check_real("filter_response_norm", "instance_norm", x, scale, bias, threshold)
    given = {"scale": scale, "bias": bias, "threshold": threshold}
    o = operands(x, given, feature_axes=feature_axes, dtype=dtype, mask=mask)
    kept = axes_of_instances(o.x, o.features)
    reduced = complement(kept, o.x.ndim)
    m = reduce_moments_about_zero(o.x, reduced, o.mask, axis_name, axis_index_groups)
    *affine, tau = o.parameters
    y = normalize(o.x, None, m.var, *affine, epsilon=epsilon)
    return (y if tau is None else jnp.maximum(y, tau)).astype(o.dtype)


@dataclass(kw_only=True, eq=False)
class FilterResponseNormRecipe(Affine, Shared):
    """Filter response norm (`jaxnorm.filter_response_norm`) with its thresholded linear unit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.FilterResponseNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,), 'threshold': (4,)}}
        >>> layer = jnx.FilterResponseNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias scale threshold (2, 8, 8, 4)
    """

    epsilon: float = 1e-6
    """Added to the mean square."""
    use_threshold: bool = True
    """Whether to apply the thresholded linear unit, which replaces an activation."""
    threshold_init: Initializer = initializers.zeros
    """Initializer of τ."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Scale and bias, then ``threshold``."""
        found = super()._parameters(shape)
        if self.use_threshold:
            found["threshold"] = Parameter(self.threshold_init, shape)
        return found

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; there is no state to update."""
        y = filter_response_norm(
            x,
            *scale_and_bias(variables),
            variables.get("threshold"),
            **self._options(call, filter_response_norm),
        )
        return y, {}
