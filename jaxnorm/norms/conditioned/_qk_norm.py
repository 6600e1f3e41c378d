"""Query-key normalization (Henry et al., 2020, https://arxiv.org/abs/2010.04245), in its current form."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core.calling._public import public
from .._shared._recipe import Call, Initializer, Parameter, Recipe, Shape, State, check_last_axis
from ..sample._rms_norm import rms_norm


@public
def qk_norm(
    query: jax.Array,
    key: jax.Array,
    query_scale: jax.Array | None = None,
    key_scale: jax.Array | None = None,
    *,
    epsilon: float = 1e-6,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """QK norm: RMS norm of the queries and keys of each head, which bounds the attention logits.

        |q · k| ≤ d · max |query_scale · key_scale|

    where d is the head size. (The original paper divides by the Euclidean length instead. ViT-22B,
    https://arxiv.org/abs/2302.05442, uses layer norm; language models use RMS norm.)

    Args:
        query: queries (..., heads, d) of any integer or floating dtype; computed in float32 or wider.
        key: keys (..., heads, d) of any integer or floating dtype; numbers of heads and positions may differ
            from ``query``.
        query_scale: γ of the queries, with shape (d,); None means 1.
        key_scale: γ of the keys, with shape (d,); None means 1.
        epsilon: ε, added to the mean square; zero or positive.
        dtype: dtype of both results; None means the dtype that each input and its scale promote to.

    Returns:
        The normalized queries and keys, with unchanged shapes.

    Raises:
        ValueError: If a shape, dtype or epsilon is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> query, key = 100 * jax.random.normal(jax.random.key(0), (2, 10, 4, 16))  # positions, heads, d
        >>> q, k = jn.qk_norm(query, key)
        >>> print(jnp.abs(jnp.einsum("qhd,khd->hqk", q, k)).max() <= 16)
        True
    """
    options = {"epsilon": epsilon, "dtype": dtype}
    return rms_norm(query, query_scale, **options), rms_norm(key, key_scale, **options)


@dataclass(kw_only=True, eq=False)
class QKNormRecipe(Recipe):
    """QK norm (`jaxnorm.qk_norm`): takes queries and keys (..., heads, d) and returns both normalized.

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

    epsilon: float = 1e-6
    """Added to the mean square."""
    use_scale: bool = True
    """Whether to learn scales."""
    scale_init: Initializer = initializers.ones
    """Initializer of both scales."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``query_scale`` and ``key_scale``, if ``use_scale`` is set."""
        names = ("query_scale", "key_scale") if self.use_scale else ()
        return {name: Parameter(self.scale_init, shape) for name in names}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Applies the norm; there is no state to update."""
        check_last_axis(self, x)
        if call.mask is not None:
            raise ValueError(
                "mask must be None in QK norm, where positions do not interact; got a mask. Mask the logits."
            )
        scales = variables.get("query_scale"), variables.get("key_scale")
        return qk_norm(x, call.condition, *scales, **self._options(call, qk_norm)), {}
