"""Spectral normalization (Miyato et al., 2018, https://arxiv.org/abs/1802.05957)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..core._arguments import is_integer
from ..core._explained import explained
from ..core._placement import replicated
from ..core._precision import promoted_dtype, result_dtype, upcast
from ..core._public import public
from ..core._serialized import serialized
from ._l2_normalize import l2_normalize


@serialized
class SpectralState(NamedTuple):
    """What the power iteration remembers of a kernel from step to step.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> state = jn.init_spectral_norm(jax.random.key(0), jnp.ones((3, 3, 16, 32)))
        >>> print(state.u.shape, state.sigma)
        (1, 32) 1.0
    """

    u: jax.Array  # (1, outputs): the direction of the inputs' largest gain, as far as it is known
    sigma: jax.Array  # (): the largest singular value, likewise; 1 before the first step


@explained
def init_spectral_norm(
    key: jax.Array, kernel: jax.Array, dtype: DTypeLike = jnp.float32
) -> SpectralState:
    """The state of spectral norm before its first step: a random direction.

    Args:
        key: of `jax.random`.
        kernel: the weights to normalize, of rank 2 or more; only their shape and kind are read.
        dtype: of the state; complex if ``kernel`` is.

    Returns:
        SpectralState.

    Raises:
        ValueError: ``kernel`` has a rank below 2.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> kernel = 4 * jnp.eye(8)
        >>> state = jn.init_spectral_norm(jax.random.key(0), kernel)
        >>> kernel, state = jn.spectral_norm(kernel, state)
        >>> print(kernel[0, 0].round(3), state.sigma.round(3))
        1.0 4.0
    """
    kernel = jnp.asarray(kernel)
    _check_rank(kernel)
    if jnp.iscomplexobj(kernel):
        dtype = promoted_dtype(jnp.dtype(dtype), jnp.complex64)
    u = jax.random.normal(key, (1, kernel.shape[-1]), dtype)
    return SpectralState(l2_normalize(u), jnp.ones((), u.real.dtype))


@public
def spectral_norm(
    kernel: jax.Array,
    state: SpectralState,
    *,
    n_steps: int | None = 1,
    epsilon: float = 1e-12,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, SpectralState]:
    """Spectral norm: weights divided by their largest singular value, so that no input grows.

        v = normalize(u Wᵀ)        u = normalize(v W)        (``n_steps`` times)
        σ = v W uᵀ                 w = W / σ

    W is the kernel as a matrix (inputs, outputs): Flax's last axis against all others. For the derivative
    u and v are constants, as in the paper: with them at the singular vectors, the first derivative of σ
    is exact. σ comes near the singular value from below, over the steps of training.

    Args:
        kernel: weights of rank 2 or more and floating or complex dtype, the last axis that of the outputs;
            the arithmetic is in float32 or wider. (Move PyTorch's first axis last.)
        state: from `init_spectral_norm` or the last step.
        n_steps: steps of power iteration, 1 or more. None: exact, by a singular value decomposition,
            which for a large kernel takes as long as thousands of steps.
        epsilon: added to the square of the length that u and v are divided by, with the kernel at the size
            where its largest weight is 1; zero or positive.
        dtype: of the result; None is what ``kernel`` and ``state`` promote to.

    Returns:
        Weights of the shape of ``kernel``, and SpectralState of the dtypes of ``state``. Dropping the new
        state (in evaluation) leaves the function as it is. A kernel of zeros has no direction: it
        stays as it is, and, with the u of zeros that power iteration then leaves, so do those that
        follow it (as in Flax, where biases that start at zero are left alone so).

    Raises:
        ValueError: ``kernel`` has a rank below 2, ``state`` belongs to another kernel, or ``n_steps``
            is less than 1; the message says what must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 16, 32))
        >>> state = jn.init_spectral_norm(jax.random.key(1), kernel)
        >>> for n_steps in (1, 20, None):
        ...     w, _ = jn.spectral_norm(kernel, state, n_steps=n_steps)
        ...     print(f"{jnp.linalg.norm(w.reshape(-1, 32), 2):.2f}")
        1.33
        1.02
        1.00
    """
    kernel = jnp.asarray(kernel)
    state = SpectralState(*map(jnp.asarray, state))
    _check_rank(kernel)
    _check_state(kernel, state, n_steps)
    wide = upcast(kernel, *state)
    matrix = replicated(wide).reshape(math.prod(kernel.shape[:-1]), kernel.shape[-1])
    fixed, u = lax.stop_gradient((matrix, state.u.astype(matrix.dtype)))
    # Directions are those of any multiple; at this one, epsilon is small beside every length.
    largest = jnp.max(jnp.abs(fixed), initial=0)
    fixed = fixed / jnp.where(largest > 0, largest, 1).astype(fixed.dtype)
    if n_steps is None:
        left, _, right = jnp.linalg.svd(fixed, full_matrices=False)
        v, u = left[:, :1].conj().T, right[:1]
    else:
        v = jnp.zeros((1, matrix.shape[0]), matrix.dtype)
        v, u = lax.fori_loop(
            0, int(n_steps), lambda _, vu: _iterated(fixed, vu[1], epsilon), (v, u)
        )
    sigma = _times(_times(v, matrix), u.conj().T)[0, 0].real
    w = wide / jnp.where(sigma != 0, sigma, 1).astype(wide.dtype)
    updated = SpectralState(u.astype(state.u.dtype), sigma.astype(state.sigma.dtype))
    return w.astype(result_dtype(dtype, kernel, *state)), updated


def has_spectral_norm(weight: jax.Array, n_steps: int | None, error_on_non_matrix: bool) -> bool:
    """Whether a module normalizes this parameter of its layer: matrices, and what can be read as one.

    Raises:
        ValueError: it is no matrix, and ``error_on_non_matrix``.
    """
    if weight.ndim < 2 or (is_integer(n_steps) and n_steps == 0):
        return False
    if weight.ndim > 2 and error_on_non_matrix:
        raise ValueError(
            f"Input is {weight.ndim}D but error_on_non_matrix is True. Got a parameter of shape "
            f"{weight.shape}; without that option it is a matrix of the last axis against all others."
        )
    return True


def _iterated(matrix: jax.Array, u: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """One step of power iteration, from ``u`` to v and the next u."""
    v = l2_normalize(_times(u, matrix.conj().T), epsilon=epsilon)
    return v, l2_normalize(_times(v, matrix), epsilon=epsilon)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product; these are small, and some devices round the factors unless they are told not to."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check_rank(kernel: jax.Array) -> None:
    if kernel.ndim < 2:
        raise ValueError(
            f"kernel must have rank 2 or more to have a spectral norm; got shape {kernel.shape}. "
            f"Leave scales and biases as they are."
        )


def _check_state(kernel: jax.Array, state: SpectralState, n_steps: int | None) -> None:
    if state.u.shape != (1, kernel.shape[-1]):
        raise ValueError(
            f"state.u must have shape (1, outputs), here {(1, kernel.shape[-1])}; got {state.u.shape} for a "
            f"kernel of shape {kernel.shape}. Start from init_spectral_norm(key, kernel)."
        )
    if jnp.iscomplexobj(state.u) != jnp.iscomplexobj(kernel):
        raise ValueError(
            f"state.u must be complex for a complex kernel, and real for a real one; got "
            f"{state.u.dtype.name} for a kernel of {kernel.dtype.name}. Start from "
            f"init_spectral_norm(key, kernel)."
        )
    if kernel.size == 0 and n_steps is None:
        raise ValueError(
            f"kernel must have elements to have singular values; got shape {kernel.shape}. Leave it out."
        )
    if n_steps is not None and (not is_integer(n_steps) or n_steps < 1):
        raise ValueError(
            f"n_steps must be an integer of 1 or more, or None for the exact singular value; got "
            f"{n_steps!r}. 1 is enough in training, where each step continues from the last."
        )
