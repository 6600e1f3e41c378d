"""Local response norm against a loop over channels in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw
from tests.oracle import (
    assert_close,
    gradient,
    hessian_times,
    local_response_norm as oracle,
    slope,
)

CONSTANTS: dict[str, Any] = {
    "alpha": 0.7,
    "beta": 0.6,
    "k": 1.3,
}  # each affects the result
# A single channel; odd and even windows; all channels; more than all, and far more.
SIZES = (1, 2, 3, 4, 5, 6, 7, 11, 12, 20)


def activations(shape: tuple[int, ...] = (2, 3, 6), dtype: str = "float32", seed: int = 0) -> Any:
    """Random activations with a nonzero mean."""
    return draw(np.random.default_rng(seed), shape, dtype, 0.5, 1.5)


@pytest.mark.parametrize("channel", [-1, 1, 0])
@pytest.mark.parametrize("size", SIZES)
def test_value(size: int, channel: int) -> None:
    """Windows of odd and even sizes work along any axis."""
    x = activations((6, 6, 6))
    f = jax.jit(lambda x: jn.local_response_norm(x, size=size, feature_axes=channel, **CONSTANTS))
    assert_close(f(x), oracle(x, size, channel=channel, **CONSTANTS))


def test_window() -> None:
    """One loud channel affects its neighbors; windows of even size reach one channel further after it."""
    x = jnp.full((1, 9), 1e-3).at[0, 4].set(1)
    for size, heard in ((1, [4]), (2, [4, 5]), (3, [3, 4, 5]), (4, [3, 4, 5, 6])):
        y = jn.local_response_norm(x, size=size, alpha=1.0 * size, beta=1.0, k=1.0)
        assert np.flatnonzero(np.asarray(y / x)[0] < 0.9).tolist() == heard


def test_defaults() -> None:
    """α is 1e-4, β 0.75 and k 1, as in PyTorch."""
    x = activations() * 100
    y = jax.jit(lambda x: jn.local_response_norm(x, size=5))(x)
    assert_close(y, oracle(x, 5, 1e-4, 0.75, 1.0))


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 4, 6), (2, 1, 3, 2, 6)], ids=str)
def test_any_rank(shape: tuple[int, ...]) -> None:
    """Arrays of any rank work, including a single vector of channels."""
    x = activations(shape)
    y = jax.jit(lambda x: jn.local_response_norm(x, size=3, **CONSTANTS))(x)
    assert_close(y, oracle(x, 3, **CONSTANTS))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_dtypes(dtype: str) -> None:
    """The sum of squares, too large for float16 here, is float32; y is rounded once."""
    x = activations(dtype=dtype)
    x = jnp.asarray(x) * 100 if dtype != "complex64" else x
    options = {"size": 5, **CONSTANTS}
    y = jax.jit(lambda x: jn.local_response_norm(x, **options))(x)
    assert y.dtype == jnp.dtype(dtype)
    assert_close(y, oracle(x, **options))
    if dtype != "complex64":
        wide = jn.local_response_norm(x, dtype=jnp.float32, **options)
        assert wide.dtype == jnp.float32
        assert_close(wide, oracle(x, **options))


def test_integers() -> None:
    """Integer input gives a float32 result."""
    x = jnp.arange(-6, 6).reshape(2, 6)
    y = jn.local_response_norm(x, size=3, **CONSTANTS)
    assert y.dtype == jnp.float32
    assert_close(y, oracle(x, 3, **CONSTANTS))


@pytest.mark.parametrize(
    ("size", "channel", "dtype"),
    [
        (1, -1, "float32"),
        (4, -1, "float32"),
        (5, 1, "float32"),
        (20, -1, "float32"),
        (4, -1, "bfloat16"),
        (3, 1, "float16"),
    ],
)
def test_derivatives(size: int, channel: int, dtype: str) -> None:
    """Reverse, forward, and Hessian products in every nesting match the oracle for random cotangents."""
    options = {"size": size, **CONSTANTS}
    shape = (2, 3, 5)
    x, along = activations(shape, dtype), activations(shape, dtype, seed=1)
    weights = activations(shape, seed=2)

    def f(x: jax.Array) -> jax.Array:
        y = jn.local_response_norm(x, feature_axes=channel, dtype=jnp.float32, **options)
        return ((weights + y) * y**2).sum()

    def loss(x: Any) -> Any:
        y = oracle(x, channel=channel, **options)
        return ((weights + y) * y**2).sum()

    @jax.jit
    def derivatives(x: jax.Array, along: jax.Array) -> Any:
        wide = along.astype(jnp.float32)
        first, second = jax.jvp(jax.grad(f), (x,), (along,))
        forward = lambda x: jax.jvp(f, (x,), (along,))[1]  # noqa: E731
        paired = lambda x: (jax.grad(f)(x).astype(jnp.float32) * wide).sum()  # noqa: E731
        return first, forward(x), (second, jax.grad(forward)(x), jax.grad(paired)(x))

    first, forward, seconds = derivatives(x, along)
    (want,) = gradient(loss, [x])
    assert first.dtype == jnp.dtype(dtype)
    assert_close(first, want, 1e-4)
    np.testing.assert_allclose(forward, slope(loss, [x], [along]), rtol=1e-4)
    (want,) = hessian_times(loss, [x], [along])
    for second in seconds:  # for a narrow x, the sum of two rounded halves
        assert_close(second, want, {"bfloat16": 2.0**-7}.get(dtype, 1e-3))


def test_scale_of_x_is_a_scale_of_the_constant() -> None:
    """With k = 0, scaling x by a scales y by a^(1 - 2β), which is 1 for β = 1/2."""
    x = activations()
    f = jax.jit(lambda x: jn.local_response_norm(x, size=3, alpha=2.0, beta=0.5, k=0.0))
    assert_close(f(8 * x), np.asarray(f(x)))
    assert_close(f(-x), -np.asarray(f(x)))


def test_all_channels_with_beta_a_half_is_rms_norm() -> None:
    """If the window covers all channels, Σ/size is the mean square times channels/size."""
    x = activations((4, 6))
    y = jn.local_response_norm(x, size=12, alpha=2.0, beta=0.5, k=0.25)
    assert_close(y, np.asarray(jn.rms_norm(x, epsilon=0.25)))


@pytest.mark.parametrize("k", [1.0, 0.0])
def test_silence(k: float) -> None:
    """Channels of zeros stay zero with finite derivatives, and their neighbors are not affected."""
    x = activations((3, 8))
    x[0], x[1, 2:] = 0, 0
    f = lambda x: jn.local_response_norm(x, size=3, alpha=1.0, k=k)  # noqa: E731
    y = jax.jit(f)(x)
    assert not y[0].any() and not y[1, 3:].any()
    curved = jax.grad(lambda x: (f(x) ** 2).sum())
    for derivative in jax.jit(lambda x: jax.jvp(curved, (x,), (x,)))(x):
        assert jnp.isfinite(derivative).all()


@pytest.mark.parametrize("shape", [(0, 3, 6), (2, 0, 6), (2, 3, 0), (1, 1, 1)], ids=str)
def test_empty_and_single(shape: tuple[int, ...]) -> None:
    """Inputs may have no examples, no positions, no channels, or one of each."""
    x = np.ones(shape, np.float32)
    f = lambda x: jn.local_response_norm(x, size=4, **CONSTANTS)  # noqa: E731
    y, dx = jax.jit(lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x)))(x)
    assert_close(y, oracle(x, 4, **CONSTANTS))
    assert dx.shape == shape and jnp.isfinite(dx).all()


def test_vmap() -> None:
    """Values and gradients are right under vmap over the batch, an axis after the channels, and both."""
    x, dy = activations((2, 4, 6, 3)), activations((2, 4, 6, 3), seed=1)
    f = lambda x: jn.local_response_norm(x, size=4, feature_axes=-1, **CONSTANTS)  # noqa: E731
    last = jax.vmap(f, in_axes=-1, out_axes=-1)  # for (batch, positions, channels, models)
    both = jax.vmap(jax.vmap(f, in_axes=-1, out_axes=-1))
    want = oracle(x, 4, channel=2, **CONSTANTS)
    (want_dx,) = gradient(lambda x: (dy * oracle(x, 4, channel=2, **CONSTANTS)).sum(), [x])
    for mapped in (last, both):
        y, dx = jax.jit(lambda x, g=mapped: (g(x), jax.vjp(g, x)[1](dy)[0]))(x)
        assert_close(y, want)
        assert_close(dx, want_dx, 1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9])
def test_pytorch(size: int) -> None:
    """Values and gradients match PyTorch, including its choice of window for even sizes."""
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, dy = activations((2, 6, 3, 4)), activations((2, 6, 3, 4), seed=1)
    theirs = torch.from_numpy(x).requires_grad_()
    out = torch.nn.LocalResponseNorm(size, **CONSTANTS)(theirs)
    out.backward(torch.from_numpy(dy))
    y, pull = jax.vjp(
        lambda x: jn.local_response_norm(x, size=size, feature_axes=1, **CONSTANTS), x
    )
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pull(dy)[0], theirs.grad.numpy(), rtol=1e-4, atol=1e-5)
