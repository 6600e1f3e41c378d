"""NNX modules for norms that Flax does not have and that treat each example independently."""

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
    """ActNorm (`jaxnorm.act_norm`): a learned affine map per channel. Returns no log-determinant.

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
    """Dynamic erf (`jaxnorm.derf`): applies erf instead of layer norm.

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
    """Dynamic tanh (`jaxnorm.dynamic_tanh`): applies tanh instead of layer norm.

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
    """EvoNorm-S0 (`jaxnorm.evo_norm_s0`): group norm and activation in one layer.

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
    """Filter response norm (`jaxnorm.filter_response_norm`) with its thresholded linear unit.

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
    """Global response norm (`jaxnorm.global_response_norm`): makes channels compete.

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
    """Pixel norm (`jaxnorm.pixel_norm`): RMS norm without a scale.

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
    """Scale norm (`jaxnorm.scale_norm`): scales every vector to the same learned length.

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
