"""Norms in jax's own primitives alone, for what reads programs and knows no others."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

# A context, so that jit does not mix programs of both kinds.
_portable = jax.make_user_context(False)


@contextmanager
def portable() -> Iterator[None]:
    """Within this context, norms are traced to jax's own primitives.

    Outside of it, a norm that takes statistics of its input is a few primitives of jaxnorm's inside a
    checkpoint. Each platform compiles them in the way that is fastest there, but ONNX converters,
    `jax.experimental.jet` and forward Laplacians do not know them. Here a norm is the textbook's two passes,
    with the same values and derivatives up to rounding.

    Use it to convert and to interpret, not to train: neither speed nor what is saved for the backward pass is
    looked after. A norm that takes no statistics, such as `batch_norm_inference`, needs it only where it is
    differentiated.

    Returns:
        A context manager. Programs that jit has compiled outside of it are kept apart.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> with jn.portable():
        ...     program = jax.make_jaxpr(jn.rms_norm)(jnp.ones((2, 4)))
        >>> print(*(eqn.primitive for eqn in program.eqns if str(eqn.primitive) != "broadcast_in_dim"))
        mul reduce_sum div add sqrt div mul
    """
    with _portable(True):
        yield


def is_portable() -> bool:
    """Whether this is within `portable`."""
    return bool(_portable.value)
