"""Laws of batch norm, and the oracle again on inputs that hypothesis makes up."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import EPSILON, MOMENTUM, Case, draw
from tests.oracle import BatchNorm, Primals, assert_close

CASES = (Case("rows", (33, 3)), Case("images", (6, 12, 11, 3)), Case("first", (6, 3, 7, 5), 1))
over = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def train(case: Case, x: Any, **options: Any) -> Any:
    """`batch_norm` without parameters."""
    stats = jn.init_running_stats(case.feature_shape)
    return jn.batch_norm(x, stats, feature_axes=case.feature_axes, **options)


def reduced(case: Case) -> tuple[int, ...]:
    """The axes that are not kept."""
    return tuple(i for i in range(len(case.shape)) if i != case.feature_axes % len(case.shape))  # type: ignore[operator]


@over
def test_output_has_mean_0_and_variance_1(case: Case) -> None:
    """Of every feature, up to ε."""
    y = np.float64(train(case, case.primals().x, epsilon=0.0)[0])
    np.testing.assert_allclose(y.mean(reduced(case)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(reduced(case)), 1, rtol=1e-5)


@over
def test_shift_and_scale_change_nothing(case: Case) -> None:
    """BN(a x + b) = sign(a) BN(x) for powers of two, which round nothing."""
    x = jnp.round(jnp.asarray(case.primals().x) * 64) / 64
    y = train(case, x, epsilon=0.0)[0]
    assert_close(train(case, x + 16, epsilon=0.0)[0], np.asarray(y))
    assert_close(train(case, -8 * x, epsilon=0.0)[0], -np.asarray(y))


@over
def test_gradient_is_orthogonal_to_shift_and_scale(case: Case) -> None:
    """Σ dx = 0 and Σ dx (x - μ) = 0 (at ε = 0) over the reduced axes."""
    x = jnp.asarray(case.primals().x)
    w = jnp.asarray(draw(case.rng(), case.shape, "float32"))
    dx = np.float64(jax.grad(lambda x: (w * train(case, x, epsilon=0.0)[0] ** 2).sum())(x))
    total = np.abs(dx).sum(reduced(case))
    assert np.all(np.abs(dx.sum(reduced(case))) <= 1e-6 * total)
    centered = np.float64(x) - np.float64(x).mean(reduced(case), keepdims=True)
    assert np.all(np.abs((dx * centered).sum(reduced(case))) <= 1e-5 * total)


@over
def test_evaluation_is_training_on_the_same_statistics(case: Case) -> None:
    """With momentum 0 the running statistics are the batch's: both modes give the same y."""
    at = case.primals()
    options = {"feature_axes": case.feature_axes, "epsilon": EPSILON}
    stats = jn.RunningStats(jnp.asarray(at.mean), jnp.asarray(at.var))
    y, stats = jn.batch_norm(at.x, stats, at.scale, at.bias, momentum=0.0, **options)
    assert_close(jn.batch_norm_inference(at.x, stats, at.scale, at.bias, **options), np.asarray(y))


@over
def test_order_of_examples_does_not_matter(case: Case) -> None:
    """A permuted batch gives the permuted y and the same statistics."""
    x = case.primals().x
    order = case.rng().permutation(len(x))
    (y, stats), (z, permuted) = train(case, x), train(case, x[order])
    assert_close(z, np.asarray(y)[order])
    assert_close(permuted.var, np.asarray(stats.var))


@over
def test_mask_is_selection(case: Case) -> None:
    """Masked examples might as well not be there."""
    x = case.primals().x
    keep = np.arange(len(x)) % 3 != 1
    mask = keep.reshape(-1, *[1] * (x.ndim - 1))
    (y, stats), (z, fewer) = train(case, x, mask=jnp.asarray(mask)), train(case, x[keep])
    assert_close(y[keep], np.asarray(z))
    for got, want in zip(stats[:2], fewer[:2], strict=True):
        assert_close(got, np.asarray(want))


# --- made up by hypothesis -----------------------------------------------------------------------


@st.composite
def cases(draw_one: Any) -> tuple[Primals, BatchNorm, str]:
    """A small input of any rank, axes, mask and dtype."""
    shape = tuple(draw_one(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    kept = draw_one(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=len(shape)))
    signs = draw_one(st.lists(st.booleans(), min_size=len(kept), max_size=len(kept)))
    axes = tuple(k - len(shape) if s else k for k, s in zip(kept, signs, strict=True))
    dtype = draw_one(st.sampled_from(["float32", "bfloat16", "float16", "complex64"]))
    rng = np.random.default_rng(draw_one(st.integers(0, 2**32 - 1)))
    mask = None
    if draw_one(st.booleans()):
        trailing = shape[draw_one(st.integers(0, len(shape) - 1)) :]
        mask = rng.random([n if rng.random() < 0.7 else 1 for n in trailing]) < rng.random()
        if draw_one(st.booleans()):
            mask = mask.astype(np.int32) * 2
    norm = BatchNorm(axes, MOMENTUM, EPSILON, draw_one(st.booleans()), mask)
    case = Case(f"{shape}{axes}{dtype}", shape, axes, dtype)
    return case.primals(), norm, case.result_dtype


@hypothesis.settings(deadline=None, derandomize=True, max_examples=35, database=None)
@hypothesis.given(cases())
def test_any_input(made_up: tuple[Primals, BatchNorm, str]) -> None:
    """Whatever the shape, axes, mask and dtype: values and gradients are the oracle's."""
    at, norm, y_dtype = made_up
    mask = None if norm.mask is None else jnp.asarray(norm.mask)

    @jax.jit
    def step(at: Primals, dy: Any) -> Any:
        def f(at: Primals) -> Any:
            stats = jn.RunningStats(at.mean, at.var)
            y, stats = jn.batch_norm(
                at.x,
                stats,
                at.scale,
                at.bias,
                feature_axes=norm.feature_axes,
                momentum=MOMENTUM,
                epsilon=EPSILON,
                unbiased=norm.unbiased,
                mask=mask,
            )
            return y, stats.mean, stats.var

        outputs, pull = jax.vjp(f, at)
        return outputs, pull((dy, *outputs[1:]))[0]

    dy = draw(np.random.default_rng(0), at.x.shape, y_dtype)
    outputs, gradients = step(at, dy)
    assert outputs[0].dtype == jnp.dtype(y_dtype)
    want = norm.value(at)
    for got, expected in zip(outputs, want, strict=True):
        assert_close(got, expected)
    cotangents = type(want)(dy, *map(np.asarray, outputs[1:]))
    for got, expected in zip(gradients, norm.gradient(at, cotangents), strict=True):
        assert_close(got, expected, 1e-4)


def test_a_large_mean_is_rounded_less_than_by_x_minus_mean() -> None:
    """On values of 1e4: nearer to float64 than the one line in float32 that Flax's own test compares with."""
    x = jax.random.normal(jax.random.split(jax.random.key(0))[0], (2, 3, 4, 5)) + 1e4
    one_line = (x - x.mean((1, 2), keepdims=True)) * jax.lax.rsqrt(
        x.var((1, 2), keepdims=True) + EPSILON
    )
    exact = np.asarray(x, np.float64)
    exact = exact - exact.mean((1, 2), keepdims=True)
    exact /= np.sqrt(exact.var((1, 2), keepdims=True) + EPSILON)
    y = jn.instance_norm(x, epsilon=EPSILON)
    ours, theirs = (np.abs(np.asarray(z) - exact).max() for z in (y, one_line))
    assert ours < 5e-4 < 1e-3 < theirs
