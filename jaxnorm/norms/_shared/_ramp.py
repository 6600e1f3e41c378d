"""A schedule that rises linearly over training steps."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Ramp:
    """A schedule: ``low`` until step ``start``, then linear up to ``high`` at step ``end``."""

    start: int
    """The last step with value ``low``."""
    end: int
    """The first step with value ``high``."""
    low: float
    """Initial value."""
    high: float
    """Final value."""

    def __call__(self, step: jax.Array) -> jax.Array:
        """Returns the value at ``step``."""
        share = jnp.clip((step - self.start) / (self.end - self.start), 0.0, 1.0)
        return self.low + (self.high - self.low) * share
