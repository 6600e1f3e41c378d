"""Norms that Flax does not have, whose statistics are of the batch, as NNX modules."""

from dataclasses import dataclass

from ..norms._batch_renorm import BatchRenormRecipe
from ..norms._evo_norm_b0 import EvoNormB0Recipe
from ..norms._frozen_batch_norm import FrozenBatchNormRecipe
from ..norms._iterative_whitening import IterativeWhiteningRecipe
from ..norms._mean_only_batch_norm import MeanOnlyBatchNormRecipe
from ..norms._switchable_norm import SwitchableNormRecipe
from ._from_recipe import FromRecipe, Training


@dataclass(eq=False)
class BatchRenorm(Training, BatchRenormRecipe, FromRecipe):
    """`jaxnorm.batch_renorm`: batch norm whose training agrees with its evaluation.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnx.BatchRenorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale steps var (8, 4)
    """


@dataclass(eq=False)
class EvoNormB0(Training, EvoNormB0Recipe, FromRecipe):
    """`jaxnorm.evo_norm_b0`: batch norm and activation in one.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 6, 6, 4))
        >>> layer = jnx.EvoNormB0(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale v var (8, 6, 6, 4)
    """


@dataclass(eq=False)
class FrozenBatchNorm(FrozenBatchNormRecipe, FromRecipe):
    """`jaxnorm.batch_norm_inference`, with nothing to train: all variables are in ``batch_stats``.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnx.FrozenBatchNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale var (8, 4)
    """


@dataclass(eq=False)
class IterativeWhitening(Training, IterativeWhiteningRecipe, FromRecipe):
    """`jaxnorm.iterative_whitening`: batch norm that decorrelates.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnx.IterativeWhitening(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias matrix mean scale (8, 4)
    """


@dataclass(eq=False)
class MeanOnlyBatchNorm(Training, MeanOnlyBatchNormRecipe, FromRecipe):
    """`jaxnorm.mean_only_batch_norm`: subtracts the mean of the batch, for layers with weight norm.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnx.MeanOnlyBatchNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean var (8, 4)
    """


@dataclass(eq=False)
class SwitchableNorm(Training, SwitchableNormRecipe, FromRecipe):
    """`jaxnorm.switchable_norm`: learns how much of instance, layer and batch norm it is.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jnp.ones((8, 6, 6, 4))
        >>> layer = jnx.SwitchableNorm(4, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean mean_weights scale var var_weights (8, 6, 6, 4)
    """
