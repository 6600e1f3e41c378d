"""Pools the running statistics that replicas kept separately."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ...core._all_reduce import AxisName
from ...core._axes import one_axis
from ...core._pool import Moments, pool
from ...core._precision import upcast
from ...core._sync import pool_over_devices
from .._model._keys import key_names
from .._model._types import TreeT


def pool_replicas(
    batch_stats: TreeT, *, axis: int | None = None, axis_name: AxisName | None = None
) -> TreeT:
    """Pools running statistics that each replica computed from its own examples.

        mean = Σ meanᵢ / R        var = Σ (varᵢ + |meanᵢ - mean|²) / R

    Use it instead of the ``pmean`` over ``batch_stats`` that is often applied before evaluation: the average
    of the variances misses the differences between the means. Layers with ``axis_name`` do not need it:
    their statistics are those of all replicas at every step.

    Args:
        batch_stats: a tree with a ``mean`` and a ``var`` for each layer: Linen's collection, the state of
            an NNX model, or RunningStats; for Flax's layers and jaxnorm's, except InputNorm and
            IterativeWhitening. Replicas have equal weights. Anything else in the tree (a batch count, the
            vectors of spectral norm) is taken from the first replica.
        axis: the axis over replicas in every array, such as 0 for the output of pmap; it is removed
            from the result. Pass either ``axis`` or ``axis_name``.
        axis_name: the mapped axis of the pmap, shard_map or vmap around this call. Shapes do not change, and
            neither does anything other than ``mean`` and ``var``.

    Returns:
        A tree of the same structure and dtypes.

    Raises:
        ValueError: If not exactly one of ``axis`` and ``axis_name`` is given, a ``var`` has no matching
            ``mean`` next to it, there are no statistics at all, or a layer keeps others: those of InputNorm
            have weights of their own, and those of IterativeWhitening are not determined by the replicas'.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> replicas = {"norm": {"mean": jnp.array([0.0, 2.0, 4.0, 6.0]), "var": jnp.ones(4)}}
        >>> print(replicas["norm"]["var"].mean(), tools.pool_replicas(replicas, axis=0)["norm"]["var"])
        1.0 6.0
    """
    if (axis is None) == (axis_name is None):
        raise ValueError(
            f"exactly one of axis and axis_name must be given; got axis={axis} and axis_name={axis_name!r}. "
            f"For stacked statistics, as returned by pmap, pass axis=0."
        )
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(batch_stats)
    leaves = {key_names(path): jnp.asarray(leaf) for path, leaf in paths_and_leaves}
    _check_layers(leaves)
    pooled = {}
    for layer in [path[:-1] for path in leaves if path[-1:] == ("var",)]:
        mean, var = leaves.get((*layer, "mean")), leaves[*layer, "var"]
        if mean is None or mean.shape != var.shape:
            raise ValueError(
                f"each var must have a mean of the same shape next to it; got {'/'.join(layer)}/var of shape "
                f"{var.shape} and {'no mean' if mean is None else f'a mean of shape {mean.shape}'}. "
                f"Pass the running statistics as stored by the layers."
            )
        pooled[*layer, "mean"], pooled[*layer, "var"] = _pooled(mean, var, axis, axis_name)
    if not pooled:
        raise ValueError(
            f"batch_stats must hold a mean and a var for at least one layer; got "
            f"{', '.join('/'.join(path) for path in leaves) or 'an empty tree'}. Pass "
            f'variables["batch_stats"] from Linen, nnx.state(model, nnx.BatchStat), or RunningStats.'
        )
    others = {
        path: leaf if axis is None else jnp.take(leaf, 0, axis) for path, leaf in leaves.items()
    }
    return jax.tree.unflatten(structure, ({**others, **pooled}[path] for path in leaves))


def _check_layers(leaves: Mapping[tuple[str, ...], jax.Array]) -> None:
    """Validates that there are no statistics whose pooled values are not those of `_pooled`.

    Raises:
        ValueError: If a layer has no variances, or weighs its values.
    """
    for *layer, name in leaves:
        if name == "mean" and (*layer, "var") not in leaves:
            raise ValueError(
                f"each mean must have a var next to it; got {'/'.join([*layer, name])} without one. Other "
                f"statistics, such as IterativeWhitening's, cannot be pooled afterwards: set axis_name in "
                f"the layer, so that it keeps those of all replicas."
            )
        if name == "remainder" and (*layer, "count") in leaves:
            raise ValueError(
                f"replicas must have equal weights; got {'/'.join([*layer, name])} of an InputNorm, whose "
                f"replicas weigh as much as they have counted. Set axis_name in the layer, so that it keeps "
                f"the statistics of all replicas, or combine Moments(mean, var, count) with jaxnorm.pool."
            )


def _pooled(
    mean: jax.Array, var: jax.Array, axis: int | None, axis_name: AxisName | None
) -> tuple[jax.Array, jax.Array]:
    wide = upcast(mean)
    m = Moments(wide, upcast(var), jnp.ones_like(wide.real))
    if axis is None:
        m = pool_over_devices(m, axis_name)
    else:
        along = one_axis(axis, mean.ndim, "axis", "the replicas")
        m = Moments(*(leaf.squeeze(along) for leaf in pool(m, along)))
    return m.mean.astype(mean.dtype), m.var.astype(var.dtype)
