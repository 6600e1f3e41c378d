"""JAX initializers as named functions, because the closures that JAX returns cannot be pickled."""

from typing import Any

import jax
from jax.nn import initializers


def half(*args: Any, **options: Any) -> jax.Array:
    """Initializes to 0.5."""
    return initializers.constant(0.5)(*args, **options)


def lecun_normal(*args: Any, **options: Any) -> jax.Array:
    """Initializes like `jax.nn.initializers.lecun_normal`."""
    return initializers.lecun_normal()(*args, **options)


def small(*args: Any, **options: Any) -> jax.Array:
    """Initializes to 1e-5."""
    return initializers.constant(1e-5)(*args, **options)
