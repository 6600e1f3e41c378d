"""Norms that use only jax's own primitives, for tools that read programs and know no others."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

# A user context is part of the key of jit's caches, so that the two kinds of programs are not mixed.
_portable = jax.make_user_context(False)


@contextmanager
def portable() -> Iterator[None]:
    """Returns a context manager within which norms are traced to jax's own primitives.

    Outside of this context, a norm that computes statistics of its input consists of a few jaxnorm primitives
    inside a checkpoint. Each platform compiles these in the way that is fastest there, but ONNX converters,
    `jax.experimental.jet` and forward Laplacians do not know them. Inside, a norm is the textbook's two-pass
    computation, with the same values and derivatives up to rounding.

    Use it to convert and interpret models, not to train them: neither speed nor what is saved for the
    backward pass is optimized. A norm that computes no statistics, such as `batch_norm_inference`, needs it
    only under differentiation.

    Returns:
        A context manager. jit caches the programs of this context separately from others.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = jnp.ones((2, 4))
        >>> with jn.portable():
        ...     program = jax.make_jaxpr(jn.rms_norm)(x)
        >>> usual = jax.make_jaxpr(jn.rms_norm)(x)
        >>> print("norm_map_sum" in str(usual), "norm_map_sum" in str(program))
        True False
    """
    with _portable(True):
        yield


def is_portable() -> bool:
    """Returns whether the `portable` context is active."""
    return bool(_portable.value)
