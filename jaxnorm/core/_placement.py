"""How arrays lie over devices, where that is a part of their type: in shard_map, and on explicit meshes.

Arrays that meet must lie alike. It is said of the small ones, before they meet the large.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from ._jax import varying_over


def match_varying(operands: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """All as varying over the devices that one of them varies over, under shard_map.

    Said of each operand, so that the transpose sums small arrays over the devices. jax would say it of
    the large ones, at the first operation that meets both.
    """
    varying = [varying_over(a) for a in operands]
    missing = [tuple(sorted(frozenset().union(*varying) - own)) for own in varying]
    return tuple(
        lax.pcast(a, names, to="varying") if names else a
        for a, names in zip(operands, missing, strict=True)
    )


def match_sharding(
    operands: Sequence[jax.Array], shape: tuple[int, ...]
) -> tuple[tuple[jax.Array, ...], tuple[Any, ...]]:
    """All split by a mesh with explicit axes as `partitions` says, where they are not repeated; and that.

    A parameter may be whole where x is split. Said of it here, its gradient is put together again.
    """
    together = partitions(map(jax.typeof, operands), shape)

    def split(a: jax.Array) -> jax.Array:
        own = (p if n == k else None for p, n, k in zip(together, a.shape, shape, strict=True))
        return resharded(a, *own)

    return tuple(map(split, operands)), together


def resharded(a: jax.Array, *partitions: Any) -> jax.Array:
    """``a``, each axis split as ``partitions`` say, by a mesh with explicit axes."""
    spec = PartitionSpec(*partitions)
    return a if jax.typeof(a).sharding.spec == spec else jax.sharding.reshard(a, spec)


def replicated(a: jax.Array) -> jax.Array:
    """``a``, whole on every device of a mesh with explicit axes."""
    return resharded(a, *[None] * a.ndim)


def partitions(avals: Iterable[Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """How a mesh with explicit axes splits each axis of arrays of these types together."""
    avals = tuple(avals)
    return tuple(
        next((p for a in avals if a.shape[i] == n and (p := a.sharding.spec[i]) is not None), None)
        for i, n in enumerate(shape)
    )
