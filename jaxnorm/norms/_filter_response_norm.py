"""Filter response normalization (Singh and Krishnan, 2019, https://arxiv.org/abs/1911.09737)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, axes_of_instances, complement
from ..core._moments import reduce_moments_about_zero
from ..core._normalize import normalize
from ..core._precision import check_real
from ..core._public import public
from ..core._residuals import rematerialized
from ._operands import operands
from ._recipe import Affine, Call, Parameter, Shape, Shared, State, scale_and_bias


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
    """FRN: divides each channel of each example by its root mean square; then TLU, its activation.

        y = max(x / sqrt(mean x² + ε) · scale + bias, τ)

    The mean is over all axes but the first, which is the batch, and ``feature_axes``.

    Args:
        x: activations of rank 2 or more and any integer or floating dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        scale: γ, of the shape of ``feature_axes``; None is 1.
        bias: β, likewise; None is 0.
        threshold: τ of the thresholded linear unit, likewise; None leaves it out.
        feature_axes: the axes that are kept besides the first.
        epsilon: ε, added to the mean square; zero or positive. (timm's default is 1e-5. For maps of one
            position the paper trains it: hand in a traced one.)
        mask: True counts. Boolean or integer, broadcastable to ``x``; what is masked is in no statistic.
        axis_name: one or several axes of vmap, pmap or shard_map over which positions are split.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        dtype: of ``y``; None is what ``x`` and the parameters promote to.

    Returns:
        ``y`` of the shape of ``x``.

    Raises:
        ValueError: ``feature_axes`` has the first axis, or another argument cannot be; the message says
            what must hold and what to do.

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
    """A layer of `filter_response_norm`."""

    epsilon: float = 1e-6
    """Added to the mean square."""
    use_threshold: bool = True
    """Whether the thresholded linear unit follows, which stands for an activation."""
    threshold_init: Initializer = initializers.zeros
    """Initializer of τ."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """τ last."""
        found = super().parameters(shape)
        if self.use_threshold:
            found["threshold"] = Parameter(self.threshold_init, shape)
        return found

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Without state."""
        y = filter_response_norm(
            x,
            *scale_and_bias(variables),
            variables.get("threshold"),
            feature_axes=self.feature_axes,
            epsilon=self.epsilon,
            mask=call.mask,
            dtype=self.dtype,
            **call.devices,
        )
        return y, {}
