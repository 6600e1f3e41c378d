"""Linen modules for norms that Flax does not have and that treat each example independently."""

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
    """ActNorm (`jaxnorm.act_norm`): a learned affine map per channel. Returns no log-determinant.

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
    """Dynamic erf (`jaxnorm.derf`): applies erf instead of layer norm.

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
    """Dynamic tanh (`jaxnorm.dynamic_tanh`): applies tanh instead of layer norm.

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
    """EvoNorm-S0 (`jaxnorm.evo_norm_s0`): group norm and activation in one layer.

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
    """Filter response norm (`jaxnorm.filter_response_norm`) with its thresholded linear unit.

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
    """Global response norm (`jaxnorm.global_response_norm`): makes channels compete.

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
    """Pixel norm (`jaxnorm.pixel_norm`): RMS norm without a scale.

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
    """Scale norm (`jaxnorm.scale_norm`): scales every vector to the same learned length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnl.ScaleNorm()
        >>> variables = layer.init(jax.random.key(0), x)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'params': {'scale': ()}}
    """
