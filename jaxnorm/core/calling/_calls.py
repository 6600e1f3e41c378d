"""Splits calls into arrays, which are traced, and everything else, which is static."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._elementwise import Which, merge, partition


class StaticPart(NamedTuple):
    """The arguments of a call without their arrays. It is hashable if everything in it is."""

    tree: Any
    are_arrays: Which
    others: tuple[Any, ...]

    def call(self, f: Callable[..., Any], arrays: Sequence[jax.Array]) -> Any:
        """Calls ``f`` with these arguments and ``arrays``."""
        args, options = jax.tree.unflatten(self.tree, merge(arrays, self.others, self.are_arrays))
        return f(*args, **options)


def split_call(
    args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[StaticPart, tuple[jax.Array, ...]]:
    """Splits a call into its static part and its arrays."""
    leaves, tree = jax.tree.flatten((tuple(args), dict(options)))
    are_arrays = tuple(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
    arrays, others = partition(leaves, are_arrays)
    return StaticPart(tree, are_arrays, others), arrays
