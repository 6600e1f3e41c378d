"""What `iterative_whitening` keeps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core._arguments import NUMBERS
from ..core._explained import explained
from ..core._serialized import serialized


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
    """Whitening statistics before any batch: mean 0, matrix 1.

    Args:
        features: how many.

    Returns:
        WhiteningStats in float32.

    Raises:
        ValueError: ``features`` is no integer of 1 or more.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_whitening(3).mean.shape
        (3,)
    """
    NUMBERS["features"].check("features", features)
    return WhiteningStats(jnp.zeros(features, jnp.float32), jnp.eye(features, dtype=jnp.float32))
