"""Linen modules for norms that Flax does not have and that use batch statistics."""

from ..norms._batch_renorm import BatchRenormRecipe
from ..norms._evo_norm_b0 import EvoNormB0Recipe
from ..norms._frozen_batch_norm import FrozenBatchNormRecipe
from ..norms._iterative_whitening import IterativeWhiteningRecipe
from ..norms._mean_only_batch_norm import MeanOnlyBatchNormRecipe
from ..norms._switchable_norm import SwitchableNormRecipe
from ._from_recipe import FromRecipe


class BatchRenorm(BatchRenormRecipe, FromRecipe):
    """Batch renorm (`jaxnorm.batch_renorm`): batch norm whose training output agrees with evaluation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.BatchRenorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'steps': (), 'var': (4,)}, 'params': {'bias': (4,), 'scale': (4,)}}
    """


class EvoNormB0(EvoNormB0Recipe, FromRecipe):
    """EvoNorm-B0 (`jaxnorm.evo_norm_b0`): batch norm and activation in one layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 6, 6, 4))
        >>> layer = jnl.EvoNormB0()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'var': (4,)}, 'params': {'bias': (4,), 'scale': (4,), 'v': (4,)}}
    """


class FrozenBatchNorm(FrozenBatchNormRecipe, FromRecipe):
    """Frozen batch norm (`jaxnorm.batch_norm_inference`): not trained; all variables are in ``batch_stats``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.FrozenBatchNorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'bias': (4,), 'mean': (4,), 'scale': (4,), 'var': (4,)}}
    """


class IterativeWhitening(IterativeWhiteningRecipe, FromRecipe):
    """Iterative whitening (`jaxnorm.iterative_whitening`): batch norm that also decorrelates the features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.IterativeWhitening()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'matrix': (4, 4), 'mean': (4,)}, 'params': {'bias': (4,), 'scale': (4,)}}
    """


class MeanOnlyBatchNorm(MeanOnlyBatchNormRecipe, FromRecipe):
    """Mean-only batch norm (`jaxnorm.mean_only_batch_norm`): subtracts the batch mean; used with weight norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.MeanOnlyBatchNorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (4,), 'var': (4,)}, 'params': {'bias': (4,)}}
    """


class SwitchableNorm(SwitchableNormRecipe, FromRecipe):
    """Switchable norm (`jaxnorm.switchable_norm`): a learned mixture of instance, layer and batch norm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jnp.ones((8, 6, 6, 4))
        >>> layer = jnl.SwitchableNorm()
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> print(*variables["batch_stats"], *variables["params"])
        mean var mean_weights var_weights scale bias
    """
