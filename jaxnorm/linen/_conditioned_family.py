"""Norms that Flax does not have, that are called with more than x, as Linen modules."""

from ..norms._ada_layer_norm import AdaLayerNormRecipe, AdaLayerNormZeroRecipe
from ..norms._adain import AdaINRecipe
from ..norms._batch_norm_of_domain import DomainBatchNormRecipe
from ..norms._conditional_batch_norm import ConditionalBatchNormRecipe
from ..norms._qk_norm import QKNormRecipe
from ..norms._spade import SpadeRecipe
from ._from_recipe import FromConditionedRecipe


class AdaIN(AdaINRecipe, FromConditionedRecipe):
    """`jaxnorm.adain`: the mean and deviation of another image, which is called after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.AdaIN()
        >>> variables = layer.init(jax.random.key(0), x, x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {}
    """


class AdaLayerNorm(AdaLayerNormRecipe, FromConditionedRecipe):
    """`jaxnorm.ada_layer_norm`, its scale and shift computed from a condition, called after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.AdaLayerNorm(condition_features=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 3)))
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (2, 4), 'kernel': (3, 2, 4)}}
    """


class AdaLayerNormZero(AdaLayerNormZeroRecipe, FromConditionedRecipe):
    """AdaLN-Zero: as `AdaLayerNorm`, and returns (y, gate): x + gate · f(y) begins as x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.AdaLayerNormZero(condition_features=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 3)))
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (3, 4), 'kernel': (3, 3, 4)}}
    """


class ConditionalBatchNorm(ConditionalBatchNormRecipe, FromConditionedRecipe):
    """Batch norm with a scale and a bias for each class, called with the labels after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.ConditionalBatchNorm(num_classes=10)
        >>> variables = layer.init(jax.random.key(0), x, jnp.zeros(8, int), use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'var': (4,)}, 'params': {'bias': (10, 4), 'scale': (10, 4)}}
    """


class DomainBatchNorm(DomainBatchNormRecipe, FromConditionedRecipe):
    """Batch norm with running statistics for each domain, called with the domain after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.DomainBatchNorm(num_domains=2)
        >>> variables = layer.init(jax.random.key(0), x, 1, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (2, 4), 'var': (2, 4)}, 'params': {'bias': (4,), 'scale': (4,)}}
    """


class QKNorm(QKNormRecipe, FromConditionedRecipe):
    """`jaxnorm.qk_norm` of queries and keys (..., heads, d), called with both; returns both.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 10, 3, 4))
        >>> layer = jnl.QKNorm()
        >>> variables = layer.init(jax.random.key(0), x, x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'key_scale': (4,), 'query_scale': (4,)}}
    """


class Spade(SpadeRecipe, FromConditionedRecipe):
    """SPADE: instance norm, its scale and bias computed for every pixel from a map, called after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.Spade(map_channels=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 4, 4, 3)))
        >>> print(*variables["params"])
        kernel bias affine_kernel affine_bias
    """
