"""Calls taken apart: arrays, which are traced, and everything else, which is known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ._elementwise import Which, merge, partition


class StaticPart(NamedTuple):
    """The arguments of a call, without their arrays. It has a hash if all that it holds has one."""

    tree: Any
    are_arrays: Which
    others: tuple[Any, ...]

    def call(self, f: Callable[..., Any], arrays: Sequence[jax.Array]) -> Any:
        """``f``, called with these arguments and ``arrays``."""
        args, options = jax.tree.unflatten(self.tree, merge(arrays, self.others, self.are_arrays))
        return f(*args, **options)


def split_call(
    args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[StaticPart, tuple[jax.Array, ...]]:
    """What is known of a call, and its arrays."""
    leaves, tree = jax.tree.flatten((tuple(args), dict(options)))
    are_arrays = tuple(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
    arrays, others = partition(leaves, are_arrays)
    return StaticPart(tree, are_arrays, others), arrays
