"""`sum_elementwise` and `map_elementwise`: sums and values of elementwise functions on each platform."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.core import _elementwise
from jaxnorm.core._elementwise import identity
from jaxnorm.core._reduce import (
    _as_complex_sum,
    _in_one_reduction,
    map_elementwise,
    sum_elementwise,
)
from tests.cases import draw
from tests.oracle import wide

SHAPES = {
    "rows": ((37, 3), (0,)),
    "last": ((5, 48), (1,)),
    "batch_and_pixels": ((6, 17, 5, 4), (0, 1, 2)),
    "channels_first": ((6, 4, 17, 5), (0, 2, 3)),
    "all": ((9, 33), (0, 1)),
    "apart": ((18, 3, 19), (0, 2)),
    "few_each": ((3, 7, 5, 4), (1, 2)),
    "empty": ((0, 3), (0,)),
}
shapes = pytest.mark.parametrize(("shape", "axes"), SHAPES.values(), ids=SHAPES)


def values(shape: tuple[int, ...], count: int = 2, dtype: str = "float32") -> list[jax.Array]:
    """``count`` arrays of one shape."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(draw(rng, shape, dtype, 0.5)) for _ in range(count)]


def assert_sums(got: Any, arrays: Any, axes: tuple[int, ...]) -> None:
    """Checks each float64 sum, up to float32 rounding of the sum of magnitudes."""
    for g, a in zip(got, arrays, strict=True):
        a = wide(a)
        total = np.abs(a).sum(axes, keepdims=True)
        want = a.sum(axes, keepdims=True)
        assert g.shape == want.shape
        assert np.all(np.abs(wide(g) - want) <= 2e-6 * total)


@pytest.mark.parametrize("size", [*range(1, 71), 97, 127, 128, 131, 257, 1009, 4099, 40009])
def test_sums_of_every_size(size: int) -> None:
    """Along the first, last or middle axis of any size, no element is lost or counted twice."""
    rng = np.random.default_rng(size)
    long = jnp.asarray(draw(rng, (size,), "float32", 0.5))

    @jax.jit
    def sums(long: Any) -> Any:
        two = jnp.array([1.0, 2.0])
        first, last = jnp.outer(long, two), jnp.outer(two, long)
        middle = jnp.stack([first, -first, 3 * first])
        return [
            (sum_elementwise(identity, a, a * a, axes=axes), (a, a * a))
            for a, axes in ((first, (0,)), (last, (1,)), (middle, (0, 1)))
        ]

    for (got, arrays), axes in zip(sums(long), ((0,), (1,), (0, 1)), strict=True):
        assert_sums(got, arrays, axes)


@shapes
@pytest.mark.parametrize("count", [1, 2, 3])
def test_collect_sums(shape: tuple[int, ...], axes: tuple[int, ...], count: int) -> None:
    """One, two or three arrays are summed separately, jitted or not."""
    arrays = values(shape, count)
    assert_sums(sum_elementwise(identity, *arrays, axes=axes), arrays, axes)
    assert_sums(jax.jit(lambda *a: sum_elementwise(identity, *a, axes=axes))(*arrays), arrays, axes)


def test_arrays_of_several_dtypes() -> None:
    """A complex sum and a real one can be taken in the same pass."""
    (z,), (r,) = values((37, 3), 1, "complex64"), values((37, 3), 1)
    assert_sums(
        jax.jit(lambda z, r: sum_elementwise(identity, z, r, axes=(0,)))(z, r), (z, r), (0,)
    )


def affine(x: Any, gain: Any, offset: Any) -> Any:
    """An elementwise function like a norm's output, with two results."""
    return x * gain + offset, jnp.tanh(x) * gain**2


def moved(x: Any, shift: Any, weight: Any) -> Any:
    """An elementwise function like those that a norm sums, with three operands."""
    return (x - shift) * weight, jnp.sin(x - shift) ** 2


def reference(f: Any, axes: tuple[int, ...]) -> Any:
    """The same function in plain jax.numpy, for any operands."""

    def plain(*operands: Any) -> list[Any]:
        full = jnp.broadcast_arrays(*operands)
        return [r.sum(axes, keepdims=True) if axes else r for r in f(*full)]

    return plain


def operands_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[jax.Array]:
    """Operands of the full shape, of size 1 along ``axes``, and of size 1 along the other axes."""
    rng = np.random.default_rng(1)
    small = tuple(1 if i in axes else n for i, n in enumerate(shape))
    other = tuple(n if i in axes else 1 for i, n in enumerate(shape))
    with jax.enable_x64(True):
        return [jnp.asarray(draw(rng, s, "float64", 0.5)) for s in (shape, small, other)]


@pytest.mark.sampled
@shapes
@pytest.mark.parametrize("f", [affine, moved])
@pytest.mark.parametrize("summed", [False, True])
def test_values_and_every_derivative(
    f: Any, summed: bool, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """Values and derivatives (forward, reverse and two second-order nestings) match plain jax.numpy."""
    with jax.enable_x64(True):
        operands = operands_of(shape, axes)
        along = [jnp.cos(3 * a) for a in operands]
        sums = axes if summed else ()
        ours = lambda *a: sum_elementwise(f, *a, axes=sums)  # noqa: E731
        plain = reference(f, sums)

        def everything(g: Any) -> Any:
            def curved(*a: Any) -> Any:
                return sum((r**2).sum() for r in g(*a))

            gradient = jax.grad(curved, argnums=(0, 1, 2))
            slope = lambda *a: sum((r**3).sum() for r in gradient(*a))  # noqa: E731
            return (
                g(*operands),
                jax.jvp(g, operands, along)[1],
                gradient(*operands),
                jax.jvp(gradient, operands, along)[1],
                jax.grad(slope, argnums=(0, 1, 2))(*operands),
            )

        got, want = jax.jit(lambda: (everything(ours), everything(plain)))()
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(
                g, w, rtol=1e-9, atol=1e-9 * max(1, np.abs(w).max(initial=0))
            )


@shapes
def test_the_transpose_collects_where_it_was_spread(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """Broadcast and sum are transposes: ⟨broadcast s, x⟩ = ⟨s, sum x⟩."""
    big = values(shape, 1)[0]
    small = values(tuple(1 if i in axes else n for i, n in enumerate(shape)), 1)[0]

    def up(s: Any) -> Any:
        return map_elementwise(lambda s, like: (s,), s, big)[0]

    (down,) = sum_elementwise(identity, big, axes=axes)
    np.testing.assert_array_equal(up(small), np.broadcast_to(small, shape))
    (got,) = jax.linear_transpose(up, small)(big)
    np.testing.assert_allclose(got, down, rtol=1e-5, atol=1e-5)


def test_one_pass_for_what_is_repeated_alike() -> None:
    """Gradients of operands that are broadcast along the same axes are summed in one pass."""
    x, gain, offset = values((37, 3), 1)[0], *values((1, 3))
    _, pull = jax.vjp(lambda *a: map_elementwise(affine, *a), x, gain, offset)
    backward = str(jax.make_jaxpr(pull)([x, x]))
    assert backward.count("norm_map_sum") == 2  # one for x, one for both others
    assert backward.count("axes=(0,)") == 1


def test_a_direction_of_none_and_a_cotangent_of_none() -> None:
    """Operands without a tangent and results without a cotangent give zeros."""
    a, b = values((37, 3))
    one = jax.jit(
        lambda a: jax.jvp(lambda a: sum_elementwise(identity, a, b, axes=(0,)), (a,), (a,))[1]
    )
    np.testing.assert_array_equal(one(a)[1], np.zeros((1, 3)))
    first = jax.grad(lambda a: sum_elementwise(identity, a, b, axes=(0,))[0].sum())(a)
    np.testing.assert_array_equal(first, np.ones((37, 3)))

    def masked(a: jax.Array, m: jax.Array) -> jax.Array:
        return sum_elementwise(lambda a, m: (jnp.where(m, a, 0),), a, m, axes=(0,))[0].sum()

    np.testing.assert_array_equal(jax.grad(masked)(a, b > 0), b > 0)


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, 2, None), (2, 0, -1), (None, 1, 0)], ids=str)
def test_vmap(dims: tuple[Any, ...]) -> None:
    """Each operand can be mapped along any axis, or not at all."""
    shapes = ((4, 19, 3), (4, 1, 3), (4, 19, 1))  # batch in front
    rng = np.random.default_rng(2)
    whole = [jnp.asarray(draw(rng, s, "float32", 0.5)) for s in shapes]
    args = [a[0] if d is None else jnp.moveaxis(a, 0, d) for a, d in zip(whole, dims, strict=True)]
    for f, axes in ((moved, (0,)), (affine, ()), (moved, (0, 1)), (moved, (1,))):
        ours = jax.vmap(lambda *a, f=f, axes=axes: sum_elementwise(f, *a, axes=axes), in_axes=dims)
        plain = jax.vmap(reference(f, axes), in_axes=dims)
        for got in (ours(*args), jax.jit(ours)(*args)):
            for g, w in zip(got, plain(*args), strict=True):
                np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


def test_a_function_that_reads_nothing() -> None:
    """It is still summed over the elements, whose number only its operands tell."""

    def twos(x: jax.Array, y: jax.Array) -> tuple[jax.Array]:
        return (jnp.full(x.shape, 2.0),)

    x, y = jnp.ones((5, 3)), jnp.ones((1, 3))
    assert _elementwise.read_by(twos, (x.dtype, y.dtype)) == (True, False)
    np.testing.assert_array_equal(sum_elementwise(twos, x, y, axes=(0,))[0], jnp.full((1, 3), 10.0))


@pytest.mark.every_case
@pytest.mark.parametrize("compute", [_in_one_reduction, _as_complex_sum])
@shapes
def test_sums_as_on_a_gpu(compute: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Both ways to take two sums add the same numbers; infinities and NaN stay in their own sum."""
    a, b = values(shape)
    sums = jax.jit(lambda a, b: compute(a, b, f=identity, axes=axes, shape=shape))
    assert_sums(sums(a, b), (a, b), axes)
    for bad in (jnp.inf, jnp.nan):
        first, second = sums(jnp.where(a == a.max(initial=-9), bad, a), b)
        np.testing.assert_array_equal(second, sums(a, b)[1])
        assert 0 in shape or not np.isfinite(first).all()


@pytest.mark.parametrize(
    ("f", "shares"),
    [
        (lambda a, b: (a, b), False),
        (lambda a, b: (a + b, a * b), False),
        (lambda a, b: (a, (a - b) * b), False),
        (lambda a, b: (a - b, (a - b) * b), False),  # computed twice, as written
        (lambda a, b: (jnp.exp(a) * b,), False),
        (lambda a, b: (lambda d: (d, d * b))(a - b), True),
        (lambda a, b: (lambda d: (d * a, d * b))(jnp.exp(a)), True),
    ],
)
def test_shared_work(f: Any, shares: bool) -> None:
    """Two results share work if an operation is needed for both."""
    assert _elementwise.shares_work(f, (jnp.dtype("float32"),) * 2) == shares


def test_functions_are_derived_once() -> None:
    """Derivatives of a function are cached; otherwise programs would be compiled again."""
    a, b, c = *values((8, 3), 1), *values((1, 3), 1), *values((8, 1), 1)

    def gradients() -> Any:
        return jax.grad(lambda *v: sum(r.sum() for r in sum_elementwise(affine, *v, axes=(0,))))(
            a, b, c
        )

    gradients()
    before = [f.cache_info().misses for f in (_elementwise.tangent_of, _elementwise.cotangent_of)]
    gradients()
    assert [
        f.cache_info().misses for f in (_elementwise.tangent_of, _elementwise.cotangent_of)
    ] == before
