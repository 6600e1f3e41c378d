"""Spectral normalization (Miyato et al., 2018, https://arxiv.org/abs/1802.05957)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._placement import replicated
from ...core._precision import promoted_dtype, result_dtype, upcast
from ...core.calling._arguments import is_integer
from ...core.calling._explained import explained
from ...core.calling._public import public
from ...core.calling._serialized import serialized
from .._shared._arithmetic import exact_product
from ..sample._l2_normalize import l2_normalize


@serialized
class SpectralState(NamedTuple):
    """The state of the power iteration for one kernel, kept from step to step.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> state = jn.init_spectral_norm(jax.random.key(0), jnp.ones((3, 3, 16, 32)))
        >>> print(state.u.shape, state.sigma)
        (1, 32) 1.0
    """

    u: jax.Array  # (1, outputs): estimate of the singular vector of the largest singular value
    sigma: jax.Array  # (): estimate of the largest singular value; 1 before the first step


@explained
def init_spectral_norm(
    key: jax.Array, kernel: jax.Array, dtype: DTypeLike = jnp.float32
) -> SpectralState:
    """Returns the initial state of spectral norm: a random direction.

    Args:
        key: a `jax.random` key.
        kernel: the weights to normalize, of rank 2 or more; only the shape and dtype are used.
        dtype: dtype of the state; made complex if ``kernel`` is complex.

    Returns:
        SpectralState.

    Raises:
        ValueError: If ``kernel`` has a rank below 2.

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
    """Spectral norm: divides weights by their largest singular value, so that no input grows in length.

        v = normalize(u Wᵀ)        u = normalize(v W)        (``n_steps`` times)
        σ = v W uᵀ                 w = W / σ

    W is the kernel reshaped to a matrix (inputs, outputs): as in Flax, the last axis is kept. As in the
    paper, u and v are treated as constants in differentiation; once they have converged to the singular
    vectors, the first derivative of σ is exact. σ approaches the singular value from below during training.

    Args:
        kernel: weights of rank 2 or more and floating or complex dtype, with the output axis last; computed
            in float32 or wider. (Move the first axis of PyTorch weights to the end.)
        state: from `init_spectral_norm` or the previous step.
        n_steps: number of power iteration steps, at least 1. None computes the exact value with a singular
            value decomposition, which for a large kernel takes as long as thousands of steps.
        epsilon: ε, added to the squared length when u and v are normalized, for a kernel rescaled so that its
            largest weight is 1; zero or positive.
        dtype: dtype of the result; None means the dtype that ``kernel`` and ``state`` promote to.

    Returns:
        Weights with the shape of ``kernel``, and updated SpectralState, with the dtypes of ``state``. In
        evaluation, drop the new state so that the function stays the same. A kernel of zeros has no direction
        and is returned unchanged. Power iteration then sets u to zeros, so all later kernels are returned
        unchanged too (as in Flax, which leaves biases that start at zero unnormalized this way).

    Raises:
        ValueError: If ``kernel`` has a rank below 2, if ``state`` belongs to another kernel, or if
            ``n_steps`` is less than 1.

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
    # Rescaling does not change the directions, and it makes epsilon small compared to every length.
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
    sigma = exact_product(exact_product(v, matrix), u.conj().T)[0, 0].real
    w = wide / jnp.where(sigma != 0, sigma, 1).astype(wide.dtype)
    updated = SpectralState(u.astype(state.u.dtype), sigma.astype(state.sigma.dtype))
    return w.astype(result_dtype(dtype, kernel, *state)), updated


def has_spectral_norm(weight: jax.Array, n_steps: int | None, error_on_non_matrix: bool) -> bool:
    """Whether a module normalizes this parameter: rank 2 or more, unless ``n_steps`` is 0.

    Raises:
        ValueError: If the rank is above 2 and ``error_on_non_matrix`` is set.
    """
    if weight.ndim < 2 or (is_integer(n_steps) and n_steps == 0):
        return False
    if weight.ndim > 2 and error_on_non_matrix:
        raise ValueError(
            f"Input is {weight.ndim}D but error_on_non_matrix is True. Got a parameter of shape "
            f"{weight.shape}; without that option it is reshaped to a matrix that keeps the last axis."
        )
    return True


def _iterated(matrix: jax.Array, u: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Runs one step of power iteration, from ``u`` to v and the next u."""
    v = l2_normalize(exact_product(u, matrix.conj().T), epsilon=epsilon)
    return v, l2_normalize(exact_product(v, matrix), epsilon=epsilon)


def _check_rank(kernel: jax.Array) -> None:
    if kernel.ndim < 2:
        raise ValueError(
            f"kernel must have rank 2 or more to have a spectral norm; got shape {kernel.shape}. "
            f"Leave scales and biases unnormalized."
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
            f"kernel must not be empty to have singular values; got shape {kernel.shape}. Leave it out."
        )
    if n_steps is not None and (not is_integer(n_steps) or n_steps < 1):
        raise ValueError(
            f"n_steps must be a positive integer, or None for the exact singular value; got {n_steps!r}. "
            f"1 is enough in training, where each step continues from the previous one."
        )
