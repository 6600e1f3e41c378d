"""1 / sqrt(a) and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnorm.core._inverse_root import inverse_root


def test_the_derivative_is_in_range_wherever_the_gradient_is() -> None:
    """It is as accurate as float32 allows, also where a^(-3/2) overflows."""
    a = jnp.asarray(10.0 ** np.arange(-36.0, 37, 4), jnp.float32)
    gradient = jax.grad(lambda a: (1e-16 * inverse_root(a)).sum())(a)
    expected = -0.5e-16 * np.asarray(a, np.float64) ** -1.5
    in_range = np.abs(expected) > 1e-36
    assert in_range[0] and not in_range[-1]
    np.testing.assert_allclose(np.asarray(gradient)[in_range], expected[in_range], rtol=5e-7)


def test_the_derivative_takes_one_division() -> None:
    """XLA:CPU compiles a program for each division and root."""

    def both(a: jax.Array, along: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(inverse_root, (a,), (along,))

    text = jax.jit(both).lower(jnp.ones(3), jnp.ones(3)).compile().as_text() or ""
    names = ("divide", "rsqrt", "sqrt", "power")  # XLA:CPU computes the value as a rsqrt
    assert [text.count(f" {name}(") for name in names] == [1, 1, 0, 0]


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)], ids=str)
def test_mapped_derivatives(mapped: tuple[int | None, ...]) -> None:
    """Tangents, values or both can be mapped."""
    a, along = jnp.array([0.3, 2.0, 5.0]), jnp.array([1.0, -2.0, 0.5])

    def derivative(a: jax.Array, along: jax.Array) -> jax.Array:
        return jax.jvp(inverse_root, (a,), (along,))[1]

    given = [v if d == 0 else v[0] for v, d in zip((a, along), mapped, strict=True)]
    want = [-0.5 * t / a**1.5 for a, t in zip(*jnp.broadcast_arrays(*given), strict=True)]
    np.testing.assert_allclose(jax.vmap(derivative, mapped)(*given), want, rtol=1e-6)


def test_higher_derivatives() -> None:
    """Up to the third, forward and reverse."""
    check_grads(inverse_root, (jnp.array([0.3, 2.0, 5.0]),), 3, rtol=2e-2)


def test_outside_of_jit() -> None:
    """Values are those of the formula, also mapped and with jit disabled."""
    a = jnp.array([0.25, 4.0])
    np.testing.assert_array_equal(jax.vmap(inverse_root)(a), [2, 0.5])
    with jax.disable_jit():
        np.testing.assert_array_equal(inverse_root(a), [2, 0.5])
