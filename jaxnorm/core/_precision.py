"""The dtype policy.

- Statistics and arithmetic are in float32 or wider, whatever the input dtype: float16 and bfloat16 lose the
  mean of a few hundred values. Complex inputs have complex means and real variances.
- A result has the requested dtype, or by default the one that x and its parameters promote to (Flax's rule).
- State keeps its own dtype (see `update_running_stats`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ._portable import is_portable


def arithmetic_dtype(*arrays: Any) -> jnp.dtype:
    """Returns the dtype to compute in: what ``arrays`` promote to, at least float32. Skips None."""
    return promoted_dtype(*arrays, jnp.float32)


def result_dtype(dtype: DTypeLike | None, *arrays: Any) -> jnp.dtype:
    """Returns ``dtype``, or by default what ``arrays`` promote to, which is float32 for integers.

    Arrays that are None are skipped.

    Raises:
        ValueError: If ``dtype`` is not a floating or complex type, or is real for complex ``arrays``.
    """
    promoted = promoted_dtype(*arrays)
    if dtype is None:
        return promoted if jnp.issubdtype(promoted, jnp.inexact) else jnp.dtype(jnp.float32)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"dtype must be a floating or complex type; got {jnp.dtype(dtype).name}. "
            f"Normalized values are not integers: use float32, or cast the result yourself."
        )
    if jnp.issubdtype(promoted, jnp.complexfloating) and not jnp.issubdtype(
        dtype, jnp.complexfloating
    ):
        raise ValueError(
            f"dtype must be complex for a complex x, scale or bias; got {jnp.dtype(dtype).name} for "
            f"{promoted.name}. Use {promoted.name}, or take the real part of the result yourself."
        )
    return jnp.dtype(dtype)


def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype of a variance: the real counterpart of ``dtype``."""
    return jnp.finfo(dtype).dtype


def dtype_of_mean(dtype: DTypeLike, stored: DTypeLike = jnp.float32) -> jnp.dtype:
    """Returns the dtype of a running mean: ``stored``, or its complex counterpart if ``dtype`` is complex."""
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    return promoted_dtype(jnp.dtype(stored), jnp.complex64) if is_complex else jnp.dtype(stored)


def check_real(norm: str, instead: str, *arrays: Any) -> None:
    """Checks that all ``arrays`` are real, for a ``norm`` whose formula is for real numbers.

    Raises:
        ValueError: If one of them is complex.
    """
    for array in arrays:
        if jnp.iscomplexobj(array):
            raise ValueError(
                f"{norm} must have real values; got {jnp.result_type(array).name}. Use their real and "
                f"imaginary parts as features, or use {instead}, which takes complex values."
            )


def upcast(x: jax.Array, *parameters: jax.Array | None) -> jax.Array:
    """Casts ``x`` to the dtype for arithmetic with ``parameters``.

    This is done once, at the start, so that all gradients of x are added in this dtype and rounded once.
    """
    return x.astype(arithmetic_dtype(x, *parameters))


def rounded_to(dtype: DTypeLike, x: jax.Array) -> jax.Array:
    """Rounds a real ``x`` to the values of ``dtype``. XLA never leaves this out, as it does two casts."""
    if is_portable():
        return x.astype(dtype).astype(x.dtype)
    info = jnp.finfo(dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant)


def promoted_dtype(*arrays: Any) -> jnp.dtype:
    """Returns what arrays and dtypes promote to by jax's standard rules. Skips None."""
    # Promotion is the purpose of this file, so a user's strict mode does not apply here.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(a for a in arrays if a is not None))
