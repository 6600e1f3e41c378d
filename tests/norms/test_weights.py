"""Unit vectors, weight norm and weight standardization: properties beyond the tables of the family."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw
from tests.oracle import assert_close, wide

FEATURES: list[Any] = [-1, 0, (0, 1), ()]
over_features = pytest.mark.parametrize("features", FEATURES, ids=str)


def kernel(dtype: str = "float32", shape: tuple[int, ...] = (3, 4, 5)) -> Any:
    """Random weights with a nonzero mean."""
    return draw(np.random.default_rng(0), shape, dtype, 0.5)


def kept(features: Any) -> tuple[int, ...]:
    """Nonnegative indices of ``features`` for a kernel of rank 3."""
    return tuple(i % 3 for i in (features if isinstance(features, tuple) else (features,)))


def lengths(w: Any, features: Any) -> Any:
    """The length of the weights of each output, from the definition."""
    reduced = tuple(i for i in range(3) if i not in kept(features))
    return np.sqrt((np.abs(wide(w)) ** 2).sum(reduced))


# --- l2_normalize --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64"])
@pytest.mark.parametrize("axes", [-1, 0, (0, 2), (0, 1, 2)], ids=str)
def test_unit_length(axes: Any, dtype: str) -> None:
    """Vectors get length 1 and keep their direction, for any axes and dtype."""
    x = kernel(dtype)
    y = jax.jit(lambda x: jn.l2_normalize(x, reduction_axes=axes))(x)
    assert y.dtype == jnp.dtype(dtype)
    axes = axes if isinstance(axes, tuple) else (axes,)
    size = np.sqrt((np.abs(wide(x)) ** 2).sum(axes, keepdims=True))
    assert_close(y, wide(x) / size)


@pytest.mark.parametrize("epsilon", [1e-12, 0.0])
def test_vector_of_zeros(epsilon: float) -> None:
    """A zero vector stays zero; its gradient is that of x / sqrt(ε), or of x if ε is 0."""
    x = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    y, dx = jax.jit(
        lambda x: (
            jn.l2_normalize(x, epsilon=epsilon),
            jax.grad(lambda x: jn.l2_normalize(x, epsilon=epsilon).sum())(x),
        )
    )(x)
    np.testing.assert_allclose(y, [[0, 0], [0.6, 0.8]], rtol=1e-6)
    at_zero = 1 / np.sqrt(epsilon) if epsilon else 1
    np.testing.assert_allclose(dx[0], at_zero, rtol=1e-5)
    np.testing.assert_allclose(dx[1], [4 * 1 / 125, -3 * 1 / 125], rtol=1e-4)


@pytest.mark.parametrize("size", [1e-3, 1e6, 1e15])
def test_any_length_in_float32(size: float) -> None:
    """As long as the squares fit in float32 and exceed ε, the length does not matter."""
    x = kernel() * np.float32(size)
    assert_close(jax.jit(jn.l2_normalize)(x), np.asarray(jn.l2_normalize(kernel())))


def test_mask_is_selection() -> None:
    """Masked elements do not count in any length, as if the others were alone."""
    x = kernel(shape=(3, 8))
    mask = np.arange(8) % 3 != 1
    y = jn.l2_normalize(x, mask=jnp.asarray(mask))
    assert_close(y[:, mask], np.asarray(jn.l2_normalize(x[:, mask])))
    assert_close(y[:, ~mask] * lengths(x[:, None, mask], 0)[:, None], x[:, ~mask])


# --- weight_norm ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64"])
@over_features
def test_lengths_are_the_scale(features: Any, dtype: str) -> None:
    """The weights of each output get the length in ``scale`` and keep their direction."""
    w = kernel(dtype)
    shape = tuple(w.shape[i] for i in kept(features))
    scale = np.abs(draw(np.random.default_rng(1), shape, "float32")) + np.float32(0.5)
    got = jax.jit(lambda w, g: jn.weight_norm(w, g, feature_axes=features, dtype=w.dtype))(w, scale)
    assert got.dtype == jnp.dtype(dtype)
    against = [n if i in kept(features) else 1 for i, n in enumerate(w.shape)]
    factor = np.reshape(np.float64(scale) / lengths(w, features), against)
    assert_close(got, wide(w) * factor)


@over_features
def test_its_own_lengths_leave_the_kernel(features: Any) -> None:
    """A scale equal to the lengths of the kernel leaves it unchanged, so a trained layer can start there."""
    w = kernel()
    own = jnp.float32(lengths(w, features))
    assert_close(jn.weight_norm(w, own, feature_axes=features), w)


@over_features
def test_gradient_is_orthogonal_to_the_kernel(features: Any) -> None:
    """The gradient of a kernel is orthogonal to it for each output; the gradient of scale is along it."""
    w = kernel()
    rng = np.random.default_rng(2)
    scale = draw(rng, tuple(w.shape[i] for i in kept(features)), "float32", 1.0)
    ct = draw(rng, w.shape, "float32")
    f = lambda w, g: (ct * jn.weight_norm(w, g, feature_axes=features)).sum()  # noqa: E731
    dw, dg = jax.jit(jax.grad(f, (0, 1)))(w, scale)
    reduced = tuple(i for i in range(3) if i not in kept(features))
    assert np.all(np.abs((np.float64(dw) * w).sum(reduced)) < 1e-5 * np.abs(dw).max())
    assert np.abs(dw).max() > 0.1
    assert_close(dg, (np.float64(ct) * w).sum(reduced) / lengths(w, features))


def test_outputs_of_one_weight() -> None:
    """With every axis kept, weight norm leaves only a sign, and standardization gives zero."""
    w = kernel()
    assert_close(jn.weight_norm(w, feature_axes=(0, 1, 2)), np.sign(w))
    assert not jn.weight_standardization(w, feature_axes=(0, 1, 2)).any()


# --- weight_standardization ----------------------------------------------------------------------


@over_features
def test_mean_0_and_variance_1(features: Any) -> None:
    """Each output has mean 0 and variance 1 (divided by n), times the gain."""
    w = kernel()
    shape = tuple(w.shape[i] for i in kept(features))
    gain = draw(np.random.default_rng(1), shape, "float32", 1.0)
    got = jax.jit(lambda w, g: jn.weight_standardization(w, g, feature_axes=features))(w, gain)
    reduced = tuple(i for i in range(3) if i not in kept(features))
    np.testing.assert_allclose(np.float64(got).mean(reduced), 0, atol=1e-6)
    np.testing.assert_allclose(np.float64(got).std(reduced), np.abs(gain), rtol=1e-5)
    assert got.shape == w.shape


def test_gain_of_fan_in_keeps_the_variance_of_activations() -> None:
    """With gain 1/sqrt(fan-in), x @ w has the variance of x, which is the purpose of the gain."""
    rng = np.random.default_rng(0)
    w, x = draw(rng, (400, 30), "float32", 3.0), draw(rng, (500, 400), "float32")
    y = x @ np.asarray(jn.weight_standardization(w, jnp.full(30, 400**-0.5)))
    np.testing.assert_allclose(y.var(), 1, rtol=0.05)


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [jn.weight_norm, jn.weight_standardization])
def test_vmap_over_kernels(norm: Any) -> None:
    """Each kernel of a vmapped stack, along any axis and twice, matches the same kernel alone."""
    stack = draw(np.random.default_rng(0), (2, 3, 4, 5, 2), "float32")
    scale = draw(np.random.default_rng(1), (2, 5), "float32")

    def loss(w: Any, g: Any) -> Any:
        return (norm(w, g) ** 3).sum()

    inner = jax.vmap(jax.value_and_grad(loss), in_axes=(-1, None))
    value, gradient = jax.jit(jax.vmap(inner))(stack, scale)
    one = jax.jit(jax.value_and_grad(loss))
    for i, j in np.ndindex(2, 2):
        want, dw = one(stack[i, ..., j], scale[i])
        np.testing.assert_allclose(value[i, j], want, rtol=1e-5, atol=1e-5)
        assert_close(gradient[i, j], np.asarray(dw))


@pytest.mark.parametrize("norm", [jn.weight_norm, jn.weight_standardization])
def test_half_precision_kernel_with_float32_scale(norm: Any) -> None:
    """The result is float32, as for a float32 kernel; its gradient has the kernel's dtype."""
    w, scale = kernel("bfloat16"), draw(np.random.default_rng(1), (5,), "float32")
    got, pull = jax.vjp(jax.jit(norm), w, scale)
    assert got.dtype == jnp.float32
    assert_close(got, np.asarray(norm(w.astype(np.float32), scale)))
    assert [g.dtype for g in pull(got)] == [jnp.bfloat16, jnp.float32]


# --- weights that keep the size of activations ---------------------------------------------------


@over_features
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scaled_weight_standardization(features: Any, dtype: str) -> None:
    """Matches the definition, so each output has sum 0 and sum of squares 1."""
    w = kernel(dtype)
    ours = jax.jit(lambda w: jn.scaled_weight_standardization(w, feature_axes=features))(w)
    assert ours.dtype == jnp.dtype(dtype)
    reduced = tuple(i for i in range(3) if i not in kept(features))
    values = wide(w)
    fan_in = np.prod([values.shape[i] for i in reduced])
    mean, var = (f(values, axis=reduced, keepdims=True) for f in (np.mean, np.var))
    assert_close(ours, (values - mean) / np.sqrt((var + 1e-6) * fan_in))


def test_scaled_weight_standardization_keeps_the_variance() -> None:
    """Inputs of variance 1 and any mean keep their variance; the factor for a relu is the paper's."""
    x = draw(np.random.default_rng(0), (4000, 256), "float32", 3.0)
    w = jn.scaled_weight_standardization(kernel(shape=(256, 64)))
    np.testing.assert_allclose((x @ w).var(), 1, rtol=0.02)
    relu = np.maximum(draw(np.random.default_rng(1), (100_000,), "float32"), 0)
    np.testing.assert_allclose(1 / relu.std(), 1.7139588594436646, rtol=0.01)


@over_features
def test_magnitude_preserving(features: Any) -> None:
    """Matches EDM2's formula: normalized to mean square 1, then divided by the root of the fan-in."""
    w = kernel()
    reduced = tuple(i for i in range(3) if i not in kept(features))
    values = wide(w)
    fan_in = np.prod([values.shape[i] for i in reduced])
    length = np.sqrt((values**2).sum(reduced, keepdims=True))
    normalized = values / (1e-4 + length / np.sqrt(fan_in))
    ours = jn.magnitude_preserving(w, 3.0, feature_axes=features)
    assert_close(ours, normalized * 3 / np.sqrt(fan_in))
    assert_close(jn.forced_magnitude(w, feature_axes=features), normalized)


def test_weights_of_zero_have_a_gradient() -> None:
    """Zero weights get a finite gradient, although their length has none."""
    grads = jax.grad(lambda w: jn.magnitude_preserving(w).sum())(jnp.zeros((3, 2)))
    assert np.isfinite(grads).all()


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=str)
def test_conv_spectral_norm_is_that_of_the_operator(strides: tuple[int, int]) -> None:
    """σ and its gradient match the largest singular value of the convolution written as a matrix."""
    rng = np.random.default_rng(0)
    w, image = draw(rng, (3, 3, 2, 3), "float32"), draw(rng, (1, 6, 5, 2), "float32")
    columns = jnp.eye(image.size).reshape(-1, *image.shape[1:])

    def singular_value(w: Any) -> Any:
        matrix = jax.lax.conv_general_dilated(
            columns, w, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.linalg.norm(matrix.reshape(image.size, -1), 2)

    @jax.jit
    def ours(w: Any) -> Any:
        return jn.conv_spectral_norm(w, image, strides=strides, n_steps=300)[0]

    np.testing.assert_allclose(ours(w), w / singular_value(w), rtol=1e-3, atol=1e-5)
    by_hand = jax.grad(lambda w: (w / singular_value(w))[0, 0, 0, 0])(w)
    np.testing.assert_allclose(jax.grad(lambda w: ours(w)[0, 0, 0, 0])(w), by_hand, atol=1e-3)


def test_conv_spectral_norm_goes_on_from_its_state() -> None:
    """Single steps, each starting from the last image, give the same result as all steps at once."""
    rng = np.random.default_rng(0)
    w, image = draw(rng, (3, 3, 2, 3), "float32"), draw(rng, (1, 6, 5, 2), "float32")
    at_once, last = jn.conv_spectral_norm(w, image, n_steps=20)
    one = jax.jit(jn.conv_spectral_norm)
    step_by_step = w
    for _ in range(20):
        step_by_step, image = one(w, image)
    np.testing.assert_allclose(step_by_step, at_once, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(image, last, rtol=1e-3, atol=1e-4)
    zeros, _ = jn.conv_spectral_norm(jnp.zeros((3, 3, 2, 3)), image)
    assert np.array_equal(zeros, jnp.zeros((3, 3, 2, 3)))
