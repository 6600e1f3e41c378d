"""Norms that Flax does not have, that are called with more than x, as NNX modules."""

from dataclasses import dataclass

from ..norms._ada_layer_norm import AdaLayerNormRecipe, AdaLayerNormZeroRecipe
from ..norms._adain import AdaINRecipe
from ..norms._batch_norm_of_domain import DomainBatchNormRecipe
from ..norms._conditional_batch_norm import ConditionalBatchNormRecipe
from ..norms._qk_norm import QKNormRecipe
from ..norms._spade import SpadeRecipe
from ._from_recipe import FromConditionedRecipe, Training


@dataclass(eq=False)
class AdaIN(AdaINRecipe, FromConditionedRecipe):
    """`jaxnorm.adain`: the mean and deviation of another image, which is called after x.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnx.AdaIN(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, x)
        >>> print(*nnx.state(layer), y.shape)
        (2, 8, 8, 4)
    """


@dataclass(eq=False)
class AdaLayerNorm(AdaLayerNormRecipe, FromConditionedRecipe):
    """`jaxnorm.ada_layer_norm`, its scale and shift computed from a condition, called after x.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnx.AdaLayerNorm(4, condition_features=3, rngs=nnx.Rngs(0))
        >>> y = layer(x, jnp.ones((2, 3)))
        >>> print(*nnx.state(layer), y.shape)
        bias kernel (2, 10, 4)
    """


@dataclass(eq=False)
class AdaLayerNormZero(AdaLayerNormZeroRecipe, FromConditionedRecipe):
    """AdaLN-Zero: as `AdaLayerNorm`, and returns (y, gate): x + gate · f(y) begins as x.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnx.AdaLayerNormZero(4, condition_features=3, rngs=nnx.Rngs(0))
        >>> y, gate = layer(x, jnp.ones((2, 3)))
        >>> print(*nnx.state(layer), y.shape)
        bias kernel (2, 10, 4)
    """


@dataclass(eq=False)
class ConditionalBatchNorm(Training, ConditionalBatchNormRecipe, FromConditionedRecipe):
    """Batch norm with a scale and a bias for each class, called with the labels after x.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnx.ConditionalBatchNorm(4, num_classes=10, rngs=nnx.Rngs(0))
        >>> y = layer(x, jnp.zeros(8, int), use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale var (8, 4)
    """


@dataclass(eq=False)
class DomainBatchNorm(Training, DomainBatchNormRecipe, FromConditionedRecipe):
    """Batch norm with running statistics for each domain, called with the domain after x.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnx.DomainBatchNorm(4, num_domains=2, rngs=nnx.Rngs(0))
        >>> y = layer(x, 1, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale var (8, 4)
    """


@dataclass(eq=False)
class QKNorm(QKNormRecipe, FromConditionedRecipe):
    """`jaxnorm.qk_norm` of queries and keys (..., heads, d), called with both; returns both.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 10, 3, 4))
        >>> layer = jnx.QKNorm(4, rngs=nnx.Rngs(0))
        >>> y, key = layer(x, x)
        >>> print(*nnx.state(layer), y.shape)
        key_scale query_scale (2, 10, 3, 4)
    """


@dataclass(eq=False)
class Spade(SpadeRecipe, FromConditionedRecipe):
    """SPADE: instance norm, its scale and bias computed for every pixel from a map, called after x.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnx.Spade(4, map_channels=3, rngs=nnx.Rngs(0))
        >>> y = layer(x, jnp.ones((2, 4, 4, 3)))
        >>> print(*nnx.state(layer), y.shape)
        affine_bias affine_kernel bias kernel (2, 8, 8, 4)
    """
