"""Linen modules for norms that Flax does not have and that take a second input after x."""

from ..norms._ada_layer_norm import AdaLayerNormRecipe, AdaLayerNormZeroRecipe
from ..norms._adain import AdaINRecipe
from ..norms._batch_norm_of_domain import DomainBatchNormRecipe
from ..norms._conditional_batch_norm import ConditionalBatchNormRecipe
from ..norms._qk_norm import QKNormRecipe
from ..norms._spade import SpadeRecipe
from ._from_recipe import FromConditionedRecipe


class AdaIN(AdaINRecipe, FromConditionedRecipe):
    """AdaIN (`jaxnorm.adain`): gives x the mean and standard deviation of a style that is passed after x.

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
    """AdaLN (`jaxnorm.ada_layer_norm`): layer norm with scale and shift from a condition, passed after x.

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
    """AdaLN-Zero: like `AdaLayerNorm`, but returns (y, gate); x + gate · f(y) starts out as x.

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
    """Batch norm with a scale and a bias for each class; the labels are passed after x.

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
    """Batch norm with running statistics for each domain; the domain is passed after x.

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
    """QK norm (`jaxnorm.qk_norm`): takes queries and keys (..., heads, d) and returns both normalized.

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
    """SPADE: instance norm with a scale and bias per pixel, computed from a map that is passed after x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.Spade(map_channels=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 4, 4, 3)))
        >>> print(*variables["params"])
        kernel bias affine_kernel affine_bias
    """
