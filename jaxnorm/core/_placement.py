"""How arrays are sharded over devices, where that is part of their type: shard_map and explicit meshes.

Operands of one operation must be sharded alike. Small arrays are converted before they meet large ones.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ._jax import as_varying, varying_over


def match_varying(operands: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Casts all ``operands`` to vary over every axis of shard_map over which any of them varies.

    Each operand is cast by itself, so that the transpose sums small arrays over the devices. jax would cast
    large ones instead, at the first operation that combines both.
    """
    varying = [varying_over(a) for a in operands]
    missing = [tuple(sorted(frozenset().union(*varying) - own)) for own in varying]
    return tuple(
        as_varying(a, names) if names else a for a, names in zip(operands, missing, strict=True)
    )


def match_sharding(
    operands: Sequence[jax.Array], shape: tuple[int, ...]
) -> tuple[tuple[jax.Array, ...], tuple[Any, ...]]:
    """Shards ``operands`` alike on a mesh with explicit axes, and returns them and their `partitions`.

    Axes along which an operand is broadcast are not split. A parameter may be replicated where x is split:
    because it is resharded here, its gradient is replicated again.
    """
    avals = tuple(map(jax.typeof, operands))
    together, mesh = partitions(avals, shape), mesh_of(avals)

    def split(a: jax.Array) -> jax.Array:
        own = (p if n == k else None for p, n, k in zip(together, a.shape, shape, strict=True))
        return resharded(a, mesh, *own)

    return tuple(map(split, operands)), together


def sharded_like(a: jax.Array, like: jax.Array) -> jax.Array:
    """Returns ``a`` with each axis split as in ``like``, on a mesh with explicit axes."""
    avals = jax.typeof(like), jax.typeof(a)
    return resharded(a, mesh_of(avals), *avals[0].sharding.spec)


def replicated(a: jax.Array, *others: jax.Array) -> jax.Array:
    """Returns ``a`` replicated over all devices of its mesh, or of that of ``others``, with explicit axes."""
    return resharded(a, mesh_of(map(jax.typeof, (a, *others))), *[None] * a.ndim)


def resharded(a: jax.Array, mesh: Any, *partitions: Any) -> jax.Array:
    """Returns ``a`` on ``mesh``, with each axis split as in ``partitions``, if the mesh has explicit axes."""
    own, spec = jax.typeof(a).sharding, PartitionSpec(*partitions)
    placed = mesh.empty or not own.mesh.empty
    return a if placed and own.spec == spec else jax.sharding.reshard(a, NamedSharding(mesh, spec))


def mesh_of(avals: Iterable[Any]) -> Any:
    """Returns the mesh that the types of arrays name, or an empty one if none does.

    Outside `jax.set_mesh`, the type of an array that was not placed on a mesh names none.
    """
    meshes = [aval.sharding.mesh for aval in avals]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


def partitions(avals: Iterable[Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Returns how a mesh with explicit axes splits each axis of ``shape``, to which ``avals`` broadcast."""
    avals = tuple(avals)
    return tuple(
        next((p for a in avals if a.shape[i] == n and (p := a.sharding.spec[i]) is not None), None)
        for i, n in enumerate(shape)
    )
