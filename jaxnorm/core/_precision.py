"""The whole dtype policy.

- Statistics and arithmetic are float32 or wider, whatever the input: float16 and bfloat16 lose the
  mean of a few hundred values. Complex input keeps complex means and real variances.
- A result has the dtype that is asked for, or else what x and its parameters promote to (Flax's rule).
- State keeps the dtype it came with (see `update_running_stats`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def arithmetic_dtype(*arrays: Any) -> jnp.dtype:
    """What to compute in: what ``arrays`` promote to, at least float32. None is skipped."""
    return promoted_dtype(*arrays, jnp.float32)


def result_dtype(dtype: DTypeLike | None, *arrays: Any) -> jnp.dtype:
    """``dtype`` if given, else what ``arrays`` promote to; integers promote to float32. None is skipped.

    Raises:
        ValueError: ``dtype`` is not a floating or complex type, or real for complex ``arrays``.
    """
    promoted = promoted_dtype(*arrays)
    if dtype is None:
        return promoted if jnp.issubdtype(promoted, jnp.inexact) else jnp.dtype(jnp.float32)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"dtype must be a floating or complex type; got {jnp.dtype(dtype).name}. "
            f"Normalized values are fractions: ask for float32, or convert the result yourself."
        )
    if jnp.issubdtype(promoted, jnp.complexfloating) and not jnp.issubdtype(
        dtype, jnp.complexfloating
    ):
        raise ValueError(
            f"dtype must be complex for a complex x, scale or bias; got {jnp.dtype(dtype).name} for "
            f"{promoted.name}. Ask for {promoted.name}, or take the real part of the result yourself."
        )
    return jnp.dtype(dtype)


def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of a variance: that of the real part."""
    return jnp.finfo(dtype).dtype


def dtype_of_mean(dtype: DTypeLike, stored: DTypeLike = jnp.float32) -> jnp.dtype:
    """That of a running mean of values of ``dtype``: ``stored``, or if they are complex its counterpart."""
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    return promoted_dtype(jnp.dtype(stored), jnp.complex64) if is_complex else jnp.dtype(stored)


def check_real(norm: str, instead: str, *arrays: Any) -> None:
    """Raises if one of ``arrays`` is complex, for a ``norm`` whose formula is of real numbers.

    Raises:
        ValueError: so it is.
    """
    for array in arrays:
        if jnp.iscomplexobj(array):
            raise ValueError(
                f"{norm} must have real values; got {jnp.result_type(array).name}. Make features of their "
                f"real and imaginary parts, or use {instead}, which takes complex ones."
            )


def upcast(x: jax.Array, *parameters: jax.Array | None) -> jax.Array:
    """``x`` in the dtype to compute in, together with ``parameters``.

    Once, before anything else: so that all gradients of x are added up in this dtype and rounded once.
    """
    return x.astype(arithmetic_dtype(x, *parameters))


def promoted_dtype(*arrays: Any) -> jnp.dtype:
    """What arrays and dtypes promote to, by jax's standard rules. None is skipped."""
    # Promotion is this file's whole purpose, so a user's strict mode is not meant for it.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(a for a in arrays if a is not None))
