"""Query-key normalization (Henry et al., 2020, https://arxiv.org/abs/2010.04245), in the form of today."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ..core._public import public
from ._recipe import Call, Parameter, Recipe, Shape, State, check_last_axis
from ._rms_norm import rms_norm


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
    """QK norm: RMS norm of each head's queries and keys, so that attention logits stay bounded.

        |q · k| ≤ d · max |query_scale · key_scale|

    where d is the size of a head. (The first paper divided by the Euclidean length instead; ViT-22B,
    https://arxiv.org/abs/2302.05442, has layer norm here; language models RMS norm.)

    Args:
        query: (..., heads, d) of any integer or floating dtype; the arithmetic is in float32 or wider.
        key: likewise; of other heads and positions if need be.
        query_scale: (d,); None is 1.
        key_scale: (d,); None is 1.
        epsilon: ε, added to the mean square; zero or positive.
        dtype: of both results; None is what each promotes to with its scale.

    Returns:
        The queries and the keys, of their shapes.

    Raises:
        ValueError: a shape, dtype or epsilon that cannot be; the message says what must hold and what to do.

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
    """A layer of `qk_norm`, called with queries and keys; returns both."""

    epsilon: float = 1e-6
    """Added to the mean square."""
    use_scale: bool = True
    """Whether there are scales."""
    scale_init: Initializer = initializers.ones
    """Initializer of both scales."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``query_scale`` and ``key_scale``, if they are wanted."""
        names = ("query_scale", "key_scale") if self.use_scale else ()
        return {name: Parameter(self.scale_init, shape) for name in names}

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Without state."""
        check_last_axis(self, x)
        if call.mask is not None:
            raise ValueError(
                "mask must be None in QK norm, where no position reads another; got one. Mask the logits."
            )
        scales = variables.get("query_scale"), variables.get("key_scale")
        return qk_norm(x, call.condition, *scales, epsilon=self.epsilon, dtype=self.dtype), {}
