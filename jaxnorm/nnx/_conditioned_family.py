"""NNX modules for norms that Flax does not have and that take a second input after x."""

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
    """AdaIN (`jaxnorm.adain`): gives x the mean and standard deviation of a style that is passed after x.

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
    """AdaLN (`jaxnorm.ada_layer_norm`): layer norm with scale and shift from a condition, passed after x.

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
    """AdaLN-Zero: like `AdaLayerNorm`, but returns (y, gate); x + gate · f(y) starts out as x.

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
    """Batch norm with a scale and a bias for each class; the labels are passed after x.

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
    """Batch norm with running statistics for each domain; the domain is passed after x.

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
    """QK norm (`jaxnorm.qk_norm`): takes queries and keys (..., heads, d) and returns both normalized.

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
    """SPADE: instance norm with a scale and bias per pixel, computed from a map that is passed after x.

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
