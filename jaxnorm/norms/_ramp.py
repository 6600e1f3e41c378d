"""A schedule of what rises with the steps of training."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Ramp:
    """A schedule: ``low`` until step ``start``, then rising evenly to ``high`` at step ``end``."""

    start: int
    """The last step of ``low``."""
    end: int
    """The first of ``high``."""
    low: float
    """What it is in the beginning."""
    high: float
    """What it is in the end."""

    def __call__(self, step: jax.Array) -> jax.Array:
        """At this step."""
        share = jnp.clip((step - self.start) / (self.end - self.start), 0.0, 1.0)
        return self.low + (self.high - self.low) * share
