"""NNX modules for norms that Flax does not have and that use batch statistics."""

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
    """Batch renorm (`jaxnorm.batch_renorm`): batch norm whose training output agrees with evaluation.

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
    """EvoNorm-B0 (`jaxnorm.evo_norm_b0`): batch norm and activation in one layer.

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
    """Frozen batch norm (`jaxnorm.batch_norm_inference`): not trained; all variables are `nnx.BatchStat`.

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
    """Iterative whitening (`jaxnorm.iterative_whitening`): batch norm that also decorrelates the features.

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
    """Mean-only batch norm (`jaxnorm.mean_only_batch_norm`): subtracts the batch mean; used with weight norm.

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
    """Switchable norm (`jaxnorm.switchable_norm`): a learned mixture of instance, layer and batch norm.

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
