"""`collect` and `spread`: sums, copies, each the transpose of the other, on every platform path."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.core._reduce import collect, spread
from tests.cases import draw
from tests.oracle import wide

SHAPES = {
    "rows": ((37, 3), (0,)),
    "last": ((5, 48), (1,)),
    "batch_and_pixels": ((6, 17, 5, 4), (0, 1, 2)),
    "channels_first": ((6, 4, 17, 5), (0, 2, 3)),
    "all": ((9, 33), (0, 1)),
    "apart": ((18, 3, 19), (0, 2)),
    "empty": ((0, 3), (0,)),
}
shapes = pytest.mark.parametrize(("shape", "axes"), SHAPES.values(), ids=SHAPES)


def values(shape: tuple[int, ...], count: int = 2, dtype: str = "float32") -> list[jax.Array]:
    """A few arrays of one shape."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(draw(rng, shape, dtype, 0.5)) for _ in range(count)]


def assert_sums(got: Any, arrays: Any, axes: tuple[int, ...]) -> None:
    """Each is the float64 sum, to float32 rounding of the sum of magnitudes."""
    for g, a in zip(got, arrays, strict=True):
        a = wide(a)
        total = np.abs(a).sum(axes, keepdims=True)
        want = a.sum(axes, keepdims=True)
        assert g.shape == want.shape
        assert np.all(np.abs(wide(g) - want) <= 2e-6 * total)


@pytest.mark.parametrize("size", [*range(1, 71), 97, 127, 128, 131, 257, 1009, 4099, 40009])
def test_sums_of_every_size(size: int) -> None:
    """First, last and middle axis of any size: no element is lost or counted twice."""
    rng = np.random.default_rng(size)
    long = jnp.asarray(draw(rng, (size,), "float32", 0.5))

    @jax.jit
    def sums(long: Any) -> Any:
        two = jnp.array([1.0, 2.0])
        first, last = jnp.outer(long, two), jnp.outer(two, long)
        middle = jnp.stack([first, -first, 3 * first])
        return [
            (collect(a, a * a, axes=axes), (a, a * a))
            for a, axes in ((first, (0,)), (last, (1,)), (middle, (0, 1)))
        ]

    for (got, arrays), axes in zip(sums(long), ((0,), (1,), (0, 1)), strict=True):
        assert_sums(got, arrays, axes)


@shapes
@pytest.mark.parametrize("count", [1, 2, 3])
def test_collect_sums(shape: tuple[int, ...], axes: tuple[int, ...], count: int) -> None:
    """One, two or three arrays, jitted or not, are summed each on its own."""
    arrays = values(shape, count)
    assert_sums(collect(*arrays, axes=axes), arrays, axes)
    assert_sums(jax.jit(lambda *a: collect(*a, axes=axes))(*arrays), arrays, axes)


def test_arrays_of_several_dtypes() -> None:
    """A complex sum and a real one in the same pass."""
    (z,), (r,) = values((37, 3), 1, "complex64"), values((37, 3), 1)
    assert_sums(jax.jit(lambda z, r: collect(z, r, axes=(0,)))(z, r), (z, r), (0,))


@shapes
def test_spread_repeats(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """What has size 1 gets the size of the other array, value by value."""
    small = values(tuple(1 if i in axes else n for i, n in enumerate(shape)))
    for got, want in zip(spread(*small, axes=axes, like=values(shape)[0]), small, strict=True):
        np.testing.assert_array_equal(got, np.broadcast_to(want, shape))


@shapes
def test_each_is_the_transpose_of_the_other(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """⟨collect a, b⟩ = ⟨a, spread b⟩, and jax transposes each into the other."""
    big = values(shape)
    small = values(tuple(1 if i in axes else n for i, n in enumerate(shape)))
    down = lambda *a: collect(*a, axes=axes)  # noqa: E731
    up = lambda *b: spread(*b, axes=axes, like=big[0])  # noqa: E731

    def dot(u: Any, v: Any) -> float:
        return sum(float((wide(a) * wide(b)).sum()) for a, b in zip(u, v, strict=True))

    np.testing.assert_allclose(dot(down(*big), small), dot(big, up(*small)), rtol=1e-5, atol=1e-5)
    transposed = jax.linear_transpose(down, *big)(down(*big))
    for got, want in zip(transposed, up(*down(*big)), strict=True):
        np.testing.assert_array_equal(got, want)
    transposed = jax.linear_transpose(up, *small)(big)
    for got, want in zip(transposed, down(*big), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_they_are_linear() -> None:
    """The derivative along a direction is the map of the direction; a direction of None is zero."""
    a, b, da, db = values((37, 3), 4)
    down = lambda a, b: collect(a, b, axes=(0,))  # noqa: E731
    for got, want in zip(jax.jvp(down, (a, b), (da, db))[1], down(da, db), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    one = jax.jit(lambda a: jax.jvp(lambda a: down(a, b), (a,), (da,))[1])(a)
    np.testing.assert_allclose(one[0], down(da, db)[0], rtol=1e-6)
    np.testing.assert_array_equal(one[1], np.zeros((1, 3)))
    first = jax.grad(lambda a: down(a, b)[0].sum())(a)
    np.testing.assert_array_equal(first, np.ones((37, 3)))


@pytest.mark.parametrize("dims", [(0, 0), (1, 2), (2, 0), (None, 1), (-1, None)], ids=str)
def test_vmap(dims: tuple[Any, Any]) -> None:
    """Batched along any axis, or not at all, in each argument on its own."""
    whole = values((4, 19, 3))  # batch in front
    args = [a[0] if d is None else jnp.moveaxis(a, 0, d) for a, d in zip(whole, dims, strict=True)]
    f = jax.vmap(lambda a, b: collect(a, b, axes=(0,)), in_axes=dims)
    expected = [jnp.stack([a[0]] * 4) if d is None else a for a, d in zip(whole, dims, strict=True)]
    assert_sums([g for g in f(*args)], expected, (1,))
    assert_sums([g for g in jax.jit(f)(*args)], expected, (1,))
    g = jax.vmap(lambda a, b: spread(a[:1], b[:1], axes=(0,), like=whole[0][0]), in_axes=dims)
    for got, want in zip(g(*args), expected, strict=True):
        np.testing.assert_array_equal(got, np.broadcast_to(want[:, :1], want.shape))


def test_no_axes_is_the_identity() -> None:
    """Nothing to reduce, nothing to repeat."""
    (a,) = values((4, 3), 1)
    assert collect(a, axes=())[0] is a and spread(a, axes=(), like=a)[0] is a
