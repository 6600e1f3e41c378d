"""The moving average of running statistics, weights and whitening matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._precision import arithmetic_dtype
from .calling._arguments import is_number


def moving_average(old: jax.Array, new: jax.Array, weight: float | jax.Array) -> jax.Array:
    """Returns weight · old + (1 - weight) · new, in float32 or wider.

    A weight of 0 drops ``old`` and a weight of 1 drops ``new``, even a NaN or an infinity, which multiplying
    by 0 would keep. The average is not computed as an increment of ``old``: next to a large ``old``, a small
    ``new`` would be lost.
    """
    dtype = arithmetic_dtype(old, new)
    if jnp.issubdtype(dtype, jnp.complexfloating):  # a complex product with an infinity is NaN
        old, new = old.astype(dtype), new.astype(dtype)
        return lax.complex(
            moving_average(old.real, new.real, weight), moving_average(old.imag, new.imag, weight)
        )
    old, new = jnp.asarray(old, dtype), jnp.asarray(new, dtype)
    if is_number(weight):  # static
        share: Any = np.asarray(weight, dtype)[()]  # in dtype, so that both shares add up to 1
        parts = [part * a for part, a in ((share, old), (1 - share, new)) if part != 0]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]
    share = jnp.asarray(weight).astype(dtype)
    kept = jnp.where(share == 0, 0, share * old)
    return kept + jnp.where(share == 1, 0, (1 - share) * new)
