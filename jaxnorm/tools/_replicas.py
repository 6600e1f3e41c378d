"""Running statistics that replicas kept each for itself, pooled."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..core._all_reduce import AxisName
from ..core._axes import one_axis
from ..core._pool import Moments, pool
from ..core._precision import upcast
from ..core._sync import pool_over_devices

_Tree = TypeVar("_Tree")


def pool_replicas(
    batch_stats: _Tree, *, axis: int | None = None, axis_name: AxisName | None = None
) -> _Tree:
    """Running statistics of all replicas, of those that each kept of its own examples.

        mean = Σ meanᵢ / R        var = Σ (varᵢ + |meanᵢ - mean|²) / R

    In place of the ``pmean`` over ``batch_stats`` that is often written before evaluation: the average
    of variances lacks what the means differ by. Layers with ``axis_name`` need none of this: their
    statistics are those of all replicas at every step.

    Args:
        batch_stats: a tree with a ``mean`` and a ``var`` for each layer: Linen's collection, the state of
            an NNX model, RunningStats; of Flax's layers as of ours. Replicas count equally. Anything else
            in it (a count of batches, the vectors of spectral norm) is taken from the first replica.
        axis: the axis of every array that runs over replicas, as 0 is in what pmap returns; it is gone in
            the result. Or:
        axis_name: the mapped axis of pmap, shard_map or vmap around this call. Shapes stay as they are, and
            so does anything that is neither a ``mean`` nor a ``var``.

    Returns:
        A tree of the same structure and dtypes.

    Raises:
        ValueError: not exactly one of ``axis`` and ``axis_name`` is given, or there is a ``var`` without
            a ``mean`` beside it, or no statistics at all.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> replicas = {"norm": {"mean": jnp.array([0.0, 2.0, 4.0, 6.0]), "var": jnp.ones(4)}}
        >>> print(replicas["norm"]["var"].mean(), tools.pool_replicas(replicas, axis=0)["norm"]["var"])
        1.0 6.0
    """
    if (axis is None) == (axis_name is None):
        raise ValueError(
            f"one of axis and axis_name must say what runs over the replicas; got axis={axis} and "
            f"axis_name={axis_name!r}. For stacked statistics, as pmap returns them, it is axis=0."
        )
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(batch_stats)
    leaves = {key_names(path): jnp.asarray(leaf) for path, leaf in paths_and_leaves}
    pooled = {}
    for layer in [path[:-1] for path in leaves if path[-1:] == ("var",)]:
        mean, var = leaves.get((*layer, "mean")), leaves[*layer, "var"]
        if mean is None or mean.shape != var.shape:
            raise ValueError(
                f"each var must have a mean of its shape beside it; got {'/'.join(layer)}/var of shape "
                f"{var.shape} and {'no mean' if mean is None else f'a mean of shape {mean.shape}'}. "
                f"Pass the running statistics as their layers store them."
            )
        pooled[*layer, "mean"], pooled[*layer, "var"] = _pooled(mean, var, axis, axis_name)
    if not pooled:
        raise ValueError(
            f"batch_stats must hold a mean and a var for some layer; got "
            f"{', '.join('/'.join(path) for path in leaves) or 'an empty tree'}. Pass "
            f'variables["batch_stats"] of Linen, nnx.state(model, nnx.BatchStat), or RunningStats.'
        )
    others = {
        path: leaf if axis is None else jnp.take(leaf, 0, axis) for path, leaf in leaves.items()
    }
    return jax.tree.unflatten(structure, ({**others, **pooled}[path] for path in leaves))


def key_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys to a leaf: those of dictionaries, fields and sequences alike."""
    names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return tuple(names[:-1] if names[-1:] == ["value"] else names)  # of a variable of NNX


def _pooled(
    mean: jax.Array, var: jax.Array, axis: int | None, axis_name: AxisName | None
) -> tuple[jax.Array, jax.Array]:
    wide = upcast(mean)
    m = Moments(wide, upcast(var), jnp.ones_like(wide.real))
    if axis is None:
        m = pool_over_devices(m, axis_name)
    else:
        along = one_axis(axis, mean.ndim, "axis", "that of the replicas")
        m = Moments(*(leaf.squeeze(along) for leaf in pool(m, along)))
    return m.mean.astype(mean.dtype), m.var.astype(var.dtype)
