"""Query-key normalization (Henry et al., 2020, https://arxiv.org/abs/2010.04245), as models have it today."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._axes import Axes
from ...core._precision import result_dtype
from ...core.calling._public import public
from .._shared._arithmetic import plus_offset
from .._shared._recipe import Call, Initializer, Parameter, Recipe, Shape, State
from ..sample._l2_normalize import l2_normalize
from ..sample._layer_norm import layer_norm
from ..sample._rms_norm import rms_norm

QKNormKind: TypeAlias = Literal["rms", "layer", "l2"]
"""The norm of the queries and keys."""


@public
def qk_norm(
    query: jax.Array,
    key: jax.Array,
    query_scale: jax.Array | None = None,
    key_scale: jax.Array | None = None,
    query_bias: jax.Array | None = None,
    key_bias: jax.Array | None = None,
    *,
    kind: QKNormKind = "rms",
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    scale_offset: float | jax.Array = 0.0,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """QK norm: normalizes queries and keys, which bounds the attention logits.

        q = norm(query) · (scale_offset + query_scale) + query_bias        (k likewise)

    The norm is `rms_norm`, `layer_norm` or `l2_normalize`. By default it is RMS norm of each head, so that
    |q · k| ≤ d · max |query_scale · key_scale|, where d is the head size. Models differ in the options:

    - Qwen3: the defaults; its own code also rounds before it multiplies by the scale, as `rms_norm` does with
      ``scale_after_cast``. Gemma 3: ``scale_offset=1``.
    - OLMo 2, one norm over all heads: ``reduction_axes=(-2, -1), feature_axes=(-2, -1)``.
    - ViT-22B (https://arxiv.org/abs/2302.05442): ``kind="layer"``.
    - Command R+, a scale for each head: ``kind="layer", feature_axes=(-2, -1)``. Chameleon adds biases.
    - Henry et al., cosine attention: ``kind="l2", feature_axes=()``, and the learned temperature as
      ``query_scale``. Swin V2 (https://arxiv.org/abs/2111.09883) has one for each head: ``feature_axes=-2``.
      Neither divides the logits by √d: pass ``scale=1.0`` to ``jax.nn.dot_product_attention``.

    Args:
        query: queries (..., heads, d) of any integer or floating dtype; computed in float32 or wider.
        key: keys (..., heads, d) of any integer or floating dtype; numbers of heads and positions may differ
            from ``query``.
        query_scale: γ of the queries, with the shape of their feature axes; None means 1.
        key_scale: γ of the keys, with the shape of their feature axes; None means 1.
        query_bias: β of the queries, likewise; only for ``kind="layer"``. None means 0.
        key_bias: β of the keys, likewise.
        kind: ``"rms"``, ``"layer"`` or ``"l2"``.
        reduction_axes: axes to compute the statistics over: -1 for each head, (-2, -1) for all of them.
        feature_axes: axes along which the scales and biases vary; () for a single scale.
        epsilon: ε, added to the mean square, the variance or the squared length; zero or positive.
        scale_offset: added to both scales, which are then required.
        dtype: dtype of both results; None means the dtype that each input, its scale and its bias promote to.

    Returns:
        The normalized queries and keys, with unchanged shapes.

    Raises:
        ValueError: If there is no such ``kind``, if another than ``"layer"`` has a bias, or if a shape, axis,
            dtype or epsilon is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> query, key = 100 * jax.random.normal(jax.random.key(0), (2, 10, 4, 16))  # positions, heads, d
        >>> q, k = jn.qk_norm(query, key)
        >>> print(jnp.abs(jnp.einsum("qhd,khd->hqk", q, k)).max() <= 16)
        True
        >>> temperatures = jnp.array([1.0, 2.0, 5.0, 10.0])
        >>> q, k = jn.qk_norm(query, key, temperatures, kind="l2", feature_axes=-2)
        >>> print(jnp.abs(jnp.einsum("qhd,khd->hqk", q, k)).max((1, 2)) <= temperatures)
        [ True  True  True  True]
    """
    if kind not in get_args(QKNormKind):
        raise ValueError(
            f"kind must be 'rms', 'layer' or 'l2'; got {kind!r}. Language models use 'rms', ViT-22B 'layer', "
            f"cosine attention 'l2'."
        )
    if kind != "layer" and not (query_bias is None and key_bias is None):
        raise ValueError(
            f"query_bias and key_bias must be None unless kind is 'layer'; got a bias with kind={kind!r}. "
            f"Add it to the result (use_bias=False in a module)."
        )

    def normalized(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        x = jnp.asarray(x)
        scale, bias = (None if a is None else jnp.asarray(a) for a in (scale, bias))
        options: Any = {
            "reduction_axes": reduction_axes,
            "feature_axes": feature_axes,
            "epsilon": epsilon,
            "dtype": result_dtype(dtype, x, scale, bias),  # promotes with the given scale
        }
        scale = plus_offset(scale, scale_offset)
        if kind == "layer":
            return layer_norm(x, scale, bias, **options)
        return (rms_norm if kind == "rms" else l2_normalize)(x, scale, **options)

    return normalized(query, query_scale, query_bias), normalized(key, key_scale, key_bias)


@dataclass(kw_only=True, eq=False)
class QKNormRecipe(Recipe):
    """QK norm (`jaxnorm.qk_norm`): takes queries and keys (..., heads, d) and returns both normalized.

    For a learned temperature, use ``kind="l2"``, ``use_key_scale=False``, and ``feature_axes=()`` for one or
    ``feature_axes=-2`` for one per head. ``scale_init`` sets where it begins.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 10, 3, 4))
        >>> layer = jnl.QKNorm()
        >>> variables = layer.init(jax.random.key(0), x, x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'key_scale': (4,), 'query_scale': (4,)}}
        >>> layer = jnx.QKNorm(4, rngs=nnx.Rngs(0))
        >>> y, key = layer(x, x)
        >>> print(*nnx.state(layer), y.shape)
        key_scale query_scale (2, 10, 3, 4)
    """

    kind: QKNormKind = "rms"
    """The norm: ``"rms"``, ``"layer"`` or ``"l2"``."""
    reduction_axes: Axes = -1
    """Axes to compute the statistics over: -1 for each head, (-2, -1) for all heads together."""
    epsilon: float = 1e-6
    """Added to the mean square, the variance or the squared length."""
    scale_offset: float | jax.Array = 0.0
    """Added to both scales. For Gemma 3's 1 + scale, use 1 with a ``scale_init`` of zeros."""
    num_key_heads: int | None = None
    """Size of the first feature axis for the keys, if they have fewer heads than the queries."""
    use_scale: bool = True
    """Whether to learn scales."""
    use_key_scale: bool = True
    """Whether the keys have a scale too. If not, the scale of the queries is that of the logits."""
    use_bias: bool = False
    """Whether to learn biases, with ``kind="layer"``."""
    scale_init: Initializer = initializers.ones
    """Initializer of both scales."""
    bias_init: Initializer = initializers.zeros
    """Initializer of both biases."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``query_scale``, ``key_scale``, ``query_bias`` and ``key_bias``, if they are in use."""
        of_key = shape if self.num_key_heads is None else (self.num_key_heads, *shape[1:])
        found = {}
        if self.use_scale:
            found["query_scale"] = Parameter(self.scale_init, shape)
            if self.use_key_scale:
                found["key_scale"] = Parameter(self.scale_init, of_key)
        if self.use_bias:
            found["query_bias"] = Parameter(self.bias_init, shape)
            found["key_bias"] = Parameter(self.bias_init, of_key)
        return found

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Applies the norm; there is no state to update."""
        if call.mask is not None:
            raise ValueError(
                "mask must be None in QK norm, where positions do not interact; got a mask. Mask the logits."
            )
        return qk_norm(x, call.condition, **variables, **self._options(call, qk_norm)), {}
