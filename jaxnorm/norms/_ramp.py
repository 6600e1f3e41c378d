"""A schedule of what rises with the steps of training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def ramp(start: int, end: int, low: float, high: float) -> Callable[[jax.Array], jax.Array]:
    """A schedule: ``low`` until step ``start``, then rising evenly to ``high`` at step ``end``."""

    def at(step: jax.Array) -> jax.Array:
        share = jnp.clip((step - start) / (end - start), 0.0, 1.0)
        return low + (high - low) * share

    return at
