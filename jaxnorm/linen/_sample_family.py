"""Norms that Flax does not have, of each example by itself, as Linen modules."""

from ..norms._act_norm import ActNormRecipe
from ..norms._derf import DerfRecipe
from ..norms._dynamic_tanh import DynamicTanhRecipe
from ..norms._evo_norm_s0 import EvoNormS0Recipe
from ..norms._filter_response_norm import FilterResponseNormRecipe
from ..norms._global_response_norm import GlobalResponseNormRecipe
from ..norms._pixel_norm import PixelNormRecipe
from ..norms._scale_norm import ScaleNormRecipe
from ._from_recipe import FromRecipe


class ActNorm(ActNormRecipe, FromRecipe):
    """`jaxnorm.act_norm`, without its log-determinant: an affine of each channel.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.ActNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'log_scale': (4,)}}
    """


class Derf(DerfRecipe, FromRecipe):
    """`jaxnorm.derf`: erf in the place of layer norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.Derf()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'alpha': (), 'bias': (4,), 'scale': (4,), 'shift': ()}}
    """


class DynamicTanh(DynamicTanhRecipe, FromRecipe):
    """`jaxnorm.dynamic_tanh`: tanh in the place of layer norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.DynamicTanh()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'alpha': (), 'bias': (4,), 'scale': (4,)}}
    """


class EvoNormS0(EvoNormS0Recipe, FromRecipe):
    """`jaxnorm.evo_norm_s0`: group norm and activation in one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.EvoNormS0(num_groups=2)
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,), 'v': (4,)}}
    """


class FilterResponseNorm(FilterResponseNormRecipe, FromRecipe):
    """`jaxnorm.filter_response_norm`, with its thresholded linear unit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.FilterResponseNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,), 'threshold': (4,)}}
    """


class GlobalResponseNorm(GlobalResponseNormRecipe, FromRecipe):
    """`jaxnorm.global_response_norm`: channels compete.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.GlobalResponseNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'bias': (4,), 'scale': (4,)}}
    """


class PixelNorm(PixelNormRecipe, FromRecipe):
    """`jaxnorm.pixel_norm`: RMS norm without a scale.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.PixelNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {}
    """


class ScaleNorm(ScaleNormRecipe, FromRecipe):
    """`jaxnorm.scale_norm`: every vector at one length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.ScaleNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'scale': ()}}
    """
