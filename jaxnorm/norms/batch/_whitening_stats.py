"""The running statistics of `iterative_whitening`."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.calling._arguments import NUMBERS
from ...core.calling._explained import explained
from ...core.calling._serialized import serialized


@serialized
class WhiteningStats(NamedTuple):
    """Running mean (C,) and running whitening matrix (C, C), or one matrix per group (groups, size, size).

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_whitening(2).matrix.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    mean: jax.Array
    matrix: jax.Array


@explained
def init_whitening(features: int, *, num_groups: int = 1) -> WhiteningStats:
    """Returns initial whitening statistics: zero mean and identity matrix.

    Args:
        features: number of channels C.
        num_groups: number of groups of consecutive channels, each of which is whitened by itself; must divide
            the number of channels.

    Returns:
        WhiteningStats in float32.

    Raises:
        ValueError: If ``features`` is not a positive integer, or ``num_groups`` does not divide it.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_whitening(3).mean.shape
        (3,)
    """
    NUMBERS["features"].check("features", features)
    NUMBERS["num_groups"].check("num_groups", num_groups)
    if num_groups is None or num_groups < 1 or features % num_groups:
        raise ValueError(
            f"num_groups must divide the number of channels; got {num_groups} for {features} channels. "
            f"Choose a divisor of {features}."
        )
    matrix = jnp.eye(features // num_groups, dtype=jnp.float32)
    if num_groups > 1:
        matrix = jnp.tile(matrix, (num_groups, 1, 1))
    return WhiteningStats(jnp.zeros(features, jnp.float32), matrix)


def fits(stats: WhiteningStats, features: int) -> bool:
    """Returns whether ``stats`` have one square matrix for all features, or one for each group of them."""
    *groups, rows, columns = stats.matrix.shape
    return len(groups) < 2 and rows == columns and math.prod(groups) * rows == features
