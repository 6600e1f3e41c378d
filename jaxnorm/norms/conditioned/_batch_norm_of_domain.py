"""Batch norm with separate statistics per domain (Chang et al., 2019, https://arxiv.org/abs/1906.03950)."""

import numbers
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from ...core._running import RunningStats, as_arrays
from ...core.calling._explained import explained
from .._shared._recipe import Affine, Call, Shape, State, Tracked, present, scale_and_bias, stats_of
from .._shared._running_norm import RunningNorm
from ..batch._batch_norm import batch_norm, batch_norm_inference


@explained
def stats_of_domain(stats: RunningStats, domain: jax.Array | int) -> RunningStats:
    """Selects the running statistics of one domain from statistics stacked along the first axis.

    Together with `with_stats_of_domain`, this lets any norm keep separate statistics for each source of
    data: clean and adversarial images, languages, hospitals.

    Args:
        stats: running statistics of all domains; each array has shape (domains, *features).
        domain: integer index of the domain; may be traced. A traced index that is out of range gives NaN.

    Returns:
        RunningStats with the shape of the feature axes.

    Raises:
        ValueError: If ``stats`` is not a RunningStats, or if ``domain`` is not one of its domains.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.array([[0.0], [5.0]]), var=jnp.ones((2, 1)))
        >>> print(jn.stats_of_domain(stats, 1).mean)
        [5.]
    """
    stats = as_arrays(stats)
    index = _index(domain, len(stats.mean))
    return jax.tree.map(lambda a: a.at[index].get(mode="fill"), stats)


@explained
def with_stats_of_domain(
    stats: RunningStats, domain: jax.Array | int, updated: RunningStats
) -> RunningStats:
    """Replaces the running statistics of one domain in statistics stacked along the first axis.

    Args:
        stats: running statistics of all domains; each array has shape (domains, *features).
        domain: integer index of the domain; may be traced. A traced index that is out of range changes
            nothing.
        updated: running statistics returned by a step on that domain.

    Returns:
        RunningStats with the shapes of ``stats``; those of the other domains are unchanged.

    Raises:
        ValueError: If ``stats`` is not a RunningStats, or if ``domain`` is not one of its domains.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.init_running_stats((2, 1))
        >>> one = jn.RunningStats(mean=jnp.array([5.0]), var=jnp.array([2.0]))
        >>> print(jn.with_stats_of_domain(stats, 1, one).mean.squeeze())
        [0. 5.]
    """
    stats = as_arrays(stats)
    index = _index(domain, len(stats.mean))
    return jax.tree.map(
        lambda a, new: a.at[index].set(new.astype(a.dtype), mode="drop"), stats, as_arrays(updated)
    )


def _index(domain: jax.Array | int, domains: int) -> jax.Array:
    index = jnp.asarray(domain)
    if index.shape != () or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"domain must be a single integer for the whole batch; got {index.dtype.name} of shape "
            f"{index.shape}. Put only one domain in each batch."
        )
    is_known = isinstance(domain, numbers.Integral | np.ndarray | jax.Array)
    if is_known and not isinstance(domain, Tracer) and not 0 <= int(domain) < domains:
        raise ValueError(
            f"domain must lie in [0, {domains - 1}]; got {domain}. Create statistics for more domains."
        )
    return jnp.where(index < 0, domains, index)  # negative: out of range, not counted from the end


@dataclass(kw_only=True, eq=False)
class DomainBatchNormRecipe(Affine, Tracked):
    """Batch norm with running statistics for each domain; the domain is passed after x.

    All domains share scale and bias.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((8, 4))
        >>> layer = jnl.DomainBatchNorm(num_domains=2)
        >>> variables = layer.init(jax.random.key(0), x, 1, use_running_average=False)
        >>> print(jax.tree.map(jnp.shape, variables))
        {'batch_stats': {'mean': (2, 4), 'var': (2, 4)}, 'params': {'bias': (4,), 'scale': (4,)}}
        >>> layer = jnx.DomainBatchNorm(4, num_domains=2, rngs=nnx.Rngs(0))
        >>> y = layer(x, 1, use_running_average=False)
        >>> print(*nnx.state(layer), y.shape)
        bias mean scale var (8, 4)
    """

    num_domains: int
    """Number of domains, each with its own statistics."""
    epsilon: float = 1e-5
    """Added to the variance."""

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """The running statistics, stacked along a first axis of domains."""
        return super()._initial_state((self.num_domains, *shape), dtype)

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum, of_batch=False)

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Normalizes ``x``; in training, also updates the running statistics of the domain."""
        domain = call.condition
        stats, affine = stats_of(variables), scale_and_bias(variables)
        own = stats_of_domain(stats, domain)
        if call.evaluating:
            y = batch_norm_inference(x, own, *affine, **self._options(call, batch_norm_inference))
            return y, {}
        y, updated = batch_norm(x, own, *affine, **self._options(call, batch_norm))
        return y, present(with_stats_of_domain(stats, domain, updated))
