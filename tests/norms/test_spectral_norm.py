"""Spectral norm against the singular value decomposition in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw
from tests.oracle import assert_close, gradient, largest_singular_value, power_iteration, wide

SHAPES = [(7, 5), (5, 7), (1, 6), (6, 1), (3, 4, 5), (3, 2, 4, 5), (2, 2, 2, 3, 4)]
DTYPES = ["float32", "float16", "bfloat16", "complex64"]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
over_steps = pytest.mark.parametrize("n_steps", [1, 3, None])


def kernel(shape: tuple[int, ...] = (7, 5), dtype: str = "float32", seed: int = 0) -> Any:
    """Random weights."""
    return draw(np.random.default_rng(seed), shape, dtype)


def start(w: Any, dtype: Any = jnp.float32) -> jn.SpectralState:
    """A state for ``w``."""
    return jn.init_spectral_norm(jax.random.key(3), w, dtype)


def run(w: Any, state: jn.SpectralState, steps: int, **options: Any) -> Any:
    """Runs training steps in a scan, so the state must keep its shapes and dtypes."""

    def step(state: jn.SpectralState, _: Any) -> Any:
        normalized, state = jn.spectral_norm(w, state, **options)
        return state, (normalized, state.sigma)

    return jax.jit(lambda state: jax.lax.scan(step, state, None, steps))(state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 5), (3, 2, 4, 5)], ids=str)
def test_first_state(shape: tuple[int, ...], dtype: str) -> None:
    """The first u has length 1, depends on the key, and is complex for a complex kernel; σ is 1."""
    w = kernel(shape, dtype)
    state = start(w)
    complex_kernel = dtype == "complex64"
    assert state.u.shape == (1, shape[-1])
    assert state.u.dtype == (jnp.complex64 if complex_kernel else jnp.float32)
    assert state.sigma.shape == () and state.sigma.dtype == jnp.float32 and state.sigma == 1
    np.testing.assert_allclose(np.linalg.norm(state.u), 1, rtol=1e-5)
    assert np.any(np.imag(state.u)) == complex_kernel
    other = jn.init_spectral_norm(jax.random.key(4), w)
    assert jnp.abs(other.u - state.u).max() > 0.01


@dtypes
@pytest.mark.parametrize("n_steps", [1, 4])
def test_steps_are_those_of_the_paper(n_steps: int, dtype: str) -> None:
    """σ, u and the weights match float64 after n steps, in one call or n calls."""
    w = kernel((3, 4, 5), dtype)
    state = start(w)
    sigma, u = power_iteration(w, state.u, n_steps)
    got, at_once = jax.jit(lambda s: jn.spectral_norm(w, s, n_steps=n_steps))(state)
    last, (each, sigmas) = run(w, state, n_steps)
    for new in (at_once, last):
        assert_close(new.sigma, np.asarray(sigma))
        assert_close(new.u, u)
    assert got.dtype == (jnp.complex64 if dtype == "complex64" else jnp.float32)
    assert_close(got, wide(w) / sigma)
    assert_close(each[-1], wide(w) / sigma)
    assert np.all(np.diff(sigmas) > -1e-6)  # converges from below


@pytest.mark.sampled
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sigma_comes_to_the_largest_singular_value(shape: tuple[int, ...], dtype: str) -> None:
    """σ converges over training steps; with n_steps=None it is exact at once."""
    w = kernel(shape, dtype)
    want = largest_singular_value(w)
    state, (normalized, _) = run(w, start(w), 200)
    exact, of_svd = jax.jit(lambda w: jn.spectral_norm(w, start(w), n_steps=None))(w)
    for sigma in (state.sigma, of_svd.sigma):
        np.testing.assert_allclose(sigma, want, rtol=1e-4)
    assert_close(exact, wide(w) / want)
    np.testing.assert_allclose(largest_singular_value(normalized[-1]), 1, rtol=1e-4)
    # u is the singular vector up to a sign: W uᴴ has length σ
    gains = wide(w).reshape(-1, shape[-1]) @ wide(of_svd.u).conj().T
    np.testing.assert_allclose(np.linalg.norm(gains), want, rtol=1e-5)


def test_one_step_from_the_exact_state_is_exact() -> None:
    """Power iteration and the exact mode share their state, so a run may switch between them."""
    w = kernel()
    _, state = jn.spectral_norm(w, start(w), n_steps=None)
    _, state = jn.spectral_norm(w, state)
    np.testing.assert_allclose(state.sigma, largest_singular_value(w), rtol=1e-6)


@over_steps
def test_sigma_of_4_times_identity_is_4(n_steps: int | None) -> None:
    """If all singular values are equal, the value and gradient are correct, without NaN."""
    w, state = 4 * jnp.eye(8), start(jnp.eye(8))
    normalized, new = jn.spectral_norm(w, state, n_steps=n_steps)
    np.testing.assert_allclose(new.sigma, 4, rtol=1e-6)
    np.testing.assert_allclose(normalized, np.eye(8), atol=1e-6)
    dw = jax.grad(lambda w: jn.spectral_norm(w, state, n_steps=n_steps)[1].sigma)(w)
    np.testing.assert_allclose(dw, wide(new.u).T @ wide(new.u), atol=1e-6)  # vᵀu, and v equals u


@pytest.mark.parametrize("shape", [(5, 4), (3, 6), (2, 2, 3)], ids=str)
def test_exact_gradient(shape: tuple[int, ...]) -> None:
    """With n_steps=None, the gradient is that of W / σ(W), including the derivative of σ."""
    w, dy = kernel(shape), kernel(shape, seed=1)
    state = start(w)

    def loss(w: Any) -> Any:
        return (dy * jn.spectral_norm(w, state, n_steps=None)[0]).sum()

    def oracle(w: Any) -> Any:
        return (dy * w / largest_singular_value(w)).sum()

    ds = jax.grad(lambda w: jn.spectral_norm(w, state, n_steps=None)[1].sigma)(w)
    assert_close(ds, gradient(largest_singular_value, [w])[0], 1e-4)
    (want,) = gradient(oracle, [w])
    assert_close(jax.jit(jax.grad(loss))(w), want, 1e-4)
    assert_close(jax.jit(jax.jacfwd(loss))(w), want, 1e-4)


@over_steps
def test_gradient_with_constant_directions(n_steps: int | None) -> None:
    """d(W/σ) is dW/σ - W (v dW uᵀ)/σ² with u and v after the step; the state gets no gradient."""
    w, dy = kernel(), kernel(seed=1)
    state = start(w)
    f = lambda w, state: jn.spectral_norm(w, state, n_steps=n_steps)[0]  # noqa: E731
    _, new = jn.spectral_norm(w, state, n_steps=n_steps)
    u = wide(state.u)
    for _ in range((n_steps or 1) - 1):
        u = power_iteration(w, u, 1)[1]
    v = wide(w) @ (wide(new.u) if n_steps is None else u).T
    v = v / np.linalg.norm(v)
    sigma = (v.T @ wide(w) @ wide(new.u).T).item()
    through = (wide(dy) * wide(w)).sum() / sigma**2
    dw, dstate = jax.jit(lambda w, s: jax.vjp(f, w, s)[1](jnp.asarray(dy)))(w, state)
    assert_close(dw, dy / sigma - through * v @ wide(new.u))
    assert not np.any(dstate.u) and not np.any(dstate.sigma)


@over_steps
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4)], ids=str)
def test_gradient_has_no_component_along_the_kernel(
    shape: tuple[int, ...], n_steps: int | None
) -> None:
    """W / σ is the same for 2 W, even before σ has converged."""
    w, dy, state = kernel(shape), kernel(shape, seed=1), start(kernel(shape))
    f = lambda w: (dy * jn.spectral_norm(w, state, n_steps=n_steps)[0]).sum()  # noqa: E731
    dw = np.float64(jax.jit(jax.grad(f))(w))
    assert abs((dw * w).sum()) < 1e-5 * np.abs(dw * w).sum()
    np.testing.assert_allclose(f(2 * w), f(w), rtol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype: str, state_dtype: str) -> None:
    """The state keeps its dtype; the result has the promoted or the requested dtype."""
    w = kernel(dtype=dtype)
    state = start(w, jnp.dtype(state_dtype))
    assert {leaf.dtype for leaf in state} == {jnp.dtype(state_dtype)}
    new, (got, _) = run(w, state, 60)
    assert {leaf.dtype for leaf in new} == {jnp.dtype(state_dtype)}
    assert got.dtype == (jnp.dtype(dtype) if dtype == state_dtype else jnp.float32)
    rounding = 2e-2 if "bfloat16" in state_dtype else 2e-3
    np.testing.assert_allclose(np.float64(new.sigma), largest_singular_value(w), rtol=rounding)
    asked, _ = jn.spectral_norm(w, state, dtype=jnp.bfloat16)
    assert asked.dtype == jnp.bfloat16


@pytest.mark.parametrize("state_dtype", ["float32", "float16"])
def test_half_precision_kernel_is_widened_first(state_dtype: str) -> None:
    """Squares and products of a float16 kernel are float32: its σ² overflows float16."""
    w = kernel((40, 30), "float16") * np.float16(100)
    state = start(w, jnp.dtype(state_dtype))
    want, u = power_iteration(w, state.u, 1)
    assert want**2 > 65504
    got, new = jax.jit(lambda w: jn.spectral_norm(w, state, dtype=jnp.float32))(w)
    assert_close(got, wide(w) / want)
    assert_close(new.sigma, np.asarray(want))
    assert_close(new.u, u)


@over_steps
@pytest.mark.parametrize("epsilon", [1e-12, 0.0])
def test_kernel_of_zeros(n_steps: int | None, epsilon: float) -> None:
    """A zero kernel stays zero with finite gradients, and the power iteration loses its direction."""
    w, other = jnp.zeros((7, 5)), kernel()
    options = {"n_steps": n_steps, "epsilon": epsilon}
    got, state = jn.spectral_norm(w, start(w), **options)
    assert not got.any() and state.sigma == 0
    for of in (0, 1):  # the weights, then σ
        f = lambda w, of=of: jax.tree.leaves(jn.spectral_norm(w, start(w), **options))[of].sum()  # noqa: E731
        assert jnp.isfinite(jax.grad(f)(w)).all()
    after, state = jn.spectral_norm(other, state, **options)
    if n_steps is None:
        np.testing.assert_allclose(largest_singular_value(after), 1, rtol=1e-5)
    else:  # as in Flax
        assert not state.u.any()
        np.testing.assert_array_equal(after, other)


@pytest.mark.parametrize("size", [1e-5, 1e-8, 1e6, 1e15])
def test_size_of_the_kernel(size: float) -> None:
    """W / σ does not depend on the size of W."""
    w = kernel((30, 40)) * np.float32(size)
    _, (got, _) = run(w, start(w), 100)
    assert largest_singular_value(got[0]) > 1
    np.testing.assert_allclose(largest_singular_value(got[-1]), 1, rtol=1e-2)


@pytest.mark.parametrize("n_steps", [2, None])
def test_vmap_over_kernels(n_steps: int | None) -> None:
    """Kernels and states can be vmapped, even a zero kernel; values and gradients match each alone."""
    stack = np.stack([kernel(seed=0), kernel(seed=1), kernel(seed=2) * 0], axis=1)
    states = jax.vmap(start, in_axes=1)(stack)
    dy = kernel((3, 7, 5), seed=5)

    def one(w: Any, state: Any, dy: Any) -> Any:
        got, pull, new = jax.vjp(
            lambda w: jn.spectral_norm(w, state, n_steps=n_steps), w, has_aux=True
        )
        return got, new, *pull(dy)

    together = jax.jit(jax.vmap(one, in_axes=(1, 0, 0)))(stack, states, dy)
    alone = jax.jit(one)
    for i in range(3):
        want = alone(stack[:, i], jax.tree.map(lambda a, i=i: a[i], states), dy[i])
        (got, new, dw), (w, state, gradient_) = jax.tree.map(lambda a, i=i: a[i], together), want
        for a, b in ((got, w), (new.sigma, state.sigma), (dw, gradient_)):
            assert_close(a, np.asarray(b), 1e-4)


def test_evaluation_leaves_the_state() -> None:
    """If the new state is dropped, the same call gives the same weights; the state is a plain pytree."""
    w = kernel()
    state = start(w)
    f = jax.jit(lambda s: jn.spectral_norm(w, s)[0])
    np.testing.assert_array_equal(f(state), f(jax.tree.map(np.asarray, state)))
