"""The running statistics of `iterative_whitening`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core.calling._arguments import NUMBERS
from ...core.calling._explained import explained
from ...core.calling._serialized import serialized


@serialized
class WhiteningStats(NamedTuple):
    """Running mean (C,) and running whitening matrix (C, C).

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_whitening(2).matrix.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    mean: jax.Array
    matrix: jax.Array


@explained
def init_whitening(features: int) -> WhiteningStats:
    """Returns initial whitening statistics: zero mean and identity matrix.

    Args:
        features: number of channels C.

    Returns:
        WhiteningStats in float32.

    Raises:
        ValueError: If ``features`` is not a positive integer.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_whitening(3).mean.shape
        (3,)
    """
    NUMBERS["features"].check("features", features)
    return WhiteningStats(jnp.zeros(features, jnp.float32), jnp.eye(features, dtype=jnp.float32))
