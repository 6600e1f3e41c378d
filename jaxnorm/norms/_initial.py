"""Initializers of jax as functions with names: those that it makes are closures, and do not pickle."""

from typing import Any

import jax
from jax.nn import initializers


def half(*args: Any, **options: Any) -> jax.Array:
    """0.5 everywhere."""
    return initializers.constant(0.5)(*args, **options)


def lecun_normal(*args: Any, **options: Any) -> jax.Array:
    """`jax.nn.initializers.lecun_normal`."""
    return initializers.lecun_normal()(*args, **options)
