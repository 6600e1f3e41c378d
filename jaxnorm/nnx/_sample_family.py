"""Norms that Flax does not have, of each example by itself, as NNX modules."""

from dataclasses import dataclass

from ..norms._act_norm import ActNormRecipe
from ..norms._derf import DerfRecipe
from ..norms._dynamic_tanh import DynamicTanhRecipe
from ..norms._evo_norm_s0 import EvoNormS0Recipe
from ..norms._filter_response_norm import FilterResponseNormRecipe
from ..norms._global_response_norm import GlobalResponseNormRecipe
from ..norms._pixel_norm import PixelNormRecipe
from ..norms._scale_norm import ScaleNormRecipe
from ._from_recipe import FromRecipe


@dataclass(eq=False)
class ActNorm(ActNormRecipe, FromRecipe):
    """`jaxnorm.act_norm`, without its log-determinant: an affine of each channel.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnx.ActNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias log_scale (2, 8, 8, 4)
    """


@dataclass(eq=False)
class Derf(DerfRecipe, FromRecipe):
    """`jaxnorm.derf`: erf in the place of layer norm.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnx.Derf(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        alpha bias scale shift (2, 10, 4)
    """


@dataclass(eq=False)
class DynamicTanh(DynamicTanhRecipe, FromRecipe):
    """`jaxnorm.dynamic_tanh`: tanh in the place of layer norm.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnx.DynamicTanh(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        alpha bias scale (2, 10, 4)
    """


@dataclass(eq=False)
class EvoNormS0(EvoNormS0Recipe, FromRecipe):
    """`jaxnorm.evo_norm_s0`: group norm and activation in one.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnx.EvoNormS0(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias scale v (2, 8, 8, 4)
    """


@dataclass(eq=False)
class FilterResponseNorm(FilterResponseNormRecipe, FromRecipe):
    """`jaxnorm.filter_response_norm`, with its thresholded linear unit.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnx.FilterResponseNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias scale threshold (2, 8, 8, 4)
    """


@dataclass(eq=False)
class GlobalResponseNorm(GlobalResponseNormRecipe, FromRecipe):
    """`jaxnorm.global_response_norm`: channels compete.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnx.GlobalResponseNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        bias scale (2, 8, 8, 4)
    """


@dataclass(eq=False)
class PixelNorm(PixelNormRecipe, FromRecipe):
    """`jaxnorm.pixel_norm`: RMS norm without a scale.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnx.PixelNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        (2, 8, 8, 4)
    """


@dataclass(eq=False)
class ScaleNorm(ScaleNormRecipe, FromRecipe):
    """`jaxnorm.scale_norm`: every vector at one length.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((2, 10, 4))
        >>> layer = jnx.ScaleNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(*nnx.state(layer), y.shape)
        scale (2, 10, 4)
    """
