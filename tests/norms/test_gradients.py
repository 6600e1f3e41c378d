"""Every entry of every gradient against float64: first and second order, for every choice of axes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import draw
from tests.family import AXES, Norm
from tests.oracle import assert_close, gradient, hessian_times, slope
from tests.selecting import thorough_but

# One case of each norm, for tests that do not depend on the axes.
BRIEFLY = ("layer -1", "rms first", "instance last", "group first", "l2 -1", "weight last")
BRIEFLY += ("standardization last",)


def curved(y: Any, weights: Any) -> Any:
    """A scalar whose first and second derivatives with respect to y are all different."""
    return ((weights + y) * y**2).sum()


def padded(norm: Norm, x: Any) -> tuple[Any, dict[str, Any]]:
    """Puts NaN under half of the mask and adds the mask option; other masked elements are normalized too."""
    mask = norm.mask()
    if mask is None:
        return x, {}
    unread = ~mask & (np.random.default_rng(6).random(x.shape) < 0.5)
    return np.where(unread, np.asarray(np.nan, x.dtype), x), {"mask": jnp.asarray(mask)}


def reverse_of_reverse(f: Any, at: Any, along: Any) -> Any:
    """The gradient of the gradient's component along ``along``."""

    def paired(at: Any) -> jax.Array:
        wide = jax.tree.map(lambda a: a.astype(jnp.float32), (jax.grad(f)(at), along))
        return sum(jnp.vdot(g, a) for g, a in zip(*wide, strict=True))  # type: ignore[return-value]

    return jax.grad(paired)(at)


def reverse_of_forward(f: Any, at: Any, along: Any) -> Any:
    """The gradient of the derivative along ``along``."""
    return jax.grad(lambda at: jax.jvp(f, (at,), (along,))[1])(at)


def check(norm: Norm, dtype: str, with_mask: bool, *nestings: Any) -> None:
    """Checks derivatives of `curved` in both modes, and Hessian products in several nestings."""
    (x, *parameters), along = norm.primals(dtype=dtype), norm.primals(1, 0.0, dtype)
    x, options = padded(norm, x) if with_mask else (x, {})
    at = (x, *parameters)
    weights = draw(np.random.default_rng(2), norm.shape, "float32")

    @jax.jit
    def derivatives(at: Any, along: Any) -> Any:
        def f(at: Any) -> jax.Array:
            # y in float32, so that only the gradient is rounded, once, and not the loss
            y = norm.ours(*at, epsilon=0.1, dtype=jnp.float32, **options)
            return curved(y, weights)

        first, forward_of_reverse = jax.jvp(jax.grad(f), (at,), (along,))
        others = [nesting(f, at, along) for nesting in nestings]
        return first, jax.jvp(f, (at,), (along,))[1], [forward_of_reverse, *others]

    first, forward, second = derivatives(at, along)

    def oracle(*at: Any) -> np.ndarray:
        return curved(norm.oracle(*at, epsilon=0.1, **options), np.float64(weights))

    want = gradient(oracle, at)
    for got, expected in zip(first, want, strict=True):
        assert got.dtype == jnp.dtype(dtype)
        assert_close(got, expected, 1e-4)
    size = sum(np.abs(g * np.float64(a)).sum() for g, a in zip(want, along, strict=True))
    assert abs(float(forward) - slope(oracle, at, along)) < 1e-5 * size
    want = hessian_times(oracle, at, along)
    largest = max(np.abs(h).max(initial=0) for h in want)
    # x is read twice, so a second derivative sums two terms that were rounded to its dtype
    tolerance = 2.0**-7 if dtype == "bfloat16" else 1e-3
    for nesting in second:
        for got, expected in zip(nesting, want, strict=True):
            # central differences of an exact zero (the variance of a single value) are not zero
            assert_close(got, np.where(np.abs(expected) < 1e-5 * largest, 0, expected), tolerance)


@pytest.mark.parametrize("name", AXES)
def test_every_choice_of_axes(name: str) -> None:
    """Derivatives match float64 without a mask."""
    check(AXES[name], "float32", False)


@pytest.mark.parametrize(
    "name", thorough_but((n for n, norm in AXES.items() if norm.takes_mask), *BRIEFLY)
)
def test_every_choice_of_axes_with_nan_under_a_mask(name: str) -> None:
    """Derivatives match float64 with NaN under the mask."""
    check(AXES[name], "float32", True)


@pytest.mark.sampled
@pytest.mark.parametrize("nesting", [reverse_of_reverse, reverse_of_forward])
@pytest.mark.parametrize("name", ["layer -1", "rms first", "group first"])
def test_other_nestings(name: str, nesting: Any) -> None:
    """Nestings besides forward over reverse, which the other tests use, match float64."""
    check(AXES[name], "float32", True, nesting)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", BRIEFLY)
def test_half_precision(name: str, dtype: str) -> None:
    """Gradients for half-precision x and parameters are the oracle's for those values, rounded once."""
    check(AXES[name], dtype, True)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", BRIEFLY)
def test_half_precision_throughout(name: str, dtype: str) -> None:
    """With y and its cotangent in half precision too, each direction rounds once."""
    norm = AXES[name]
    (x, *parameters), along = norm.primals(dtype=dtype), norm.primals(1, 0.0, dtype)
    x, options = padded(norm, x)
    at = (x, *parameters)
    dy = draw(np.random.default_rng(2), norm.shape, dtype)

    @jax.jit
    def both_modes(at: Any, along: Any) -> Any:
        ours = lambda at: norm.ours(*at, epsilon=0.1, **options)  # noqa: E731
        return jax.vjp(ours, at)[1](dy)[0], jax.jvp(ours, (at,), (along,))

    def oracle(*at: Any) -> np.ndarray:
        return norm.oracle(*at, epsilon=0.1, **options)

    gradients, (y, tangent) = both_modes(at, along)
    assert y.dtype == tangent.dtype == jnp.dtype(dtype)
    assert_close(y, oracle(*at))
    assert_close(tangent, slope(oracle, at, along), 1e-4)
    want = gradient(lambda *at: (oracle(*at) * np.float64(dy)).sum(), at)
    for got, expected in zip(gradients, want, strict=True):
        assert_close(got, expected, 1e-4)
