"""`batch_norm` and `batch_norm_inference` against the float64 oracle: values, gradients, extremes."""

import contextlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import CASES, EPSILON, MOMENTUM, Case, draw
from tests.oracle import BatchNorm, Outputs, Primals, assert_close


def train(case: Case, *, unbiased: bool = False, **options: Any) -> Any:
    """`batch_norm` for a case, as a function from its primals to `Outputs`."""
    mask = case.mask()

    def f(x: Any, mean: Any, var: Any, scale: Any, bias: Any) -> Outputs:
        y, stats = jn.batch_norm(
            x,
            jn.RunningStats(mean, var),
            scale,
            bias,
            feature_axes=case.feature_axes,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            unbiased=unbiased,
            mask=None if mask is None else jnp.asarray(mask),
            **options,
        )
        return Outputs(y, stats.mean, stats.var)

    return f


def oracle_of(case: Case, *, unbiased: bool = False) -> BatchNorm:
    """The same in float64."""
    return BatchNorm(case.feature_axes, MOMENTUM, EPSILON, unbiased, case.mask())


def derivatives(f: Any, at: tuple, along: tuple, choose: Any = None) -> tuple:
    """Outputs, tangents, gradients and the random cotangents used for them, from one compilation."""
    cotangents = CASES[0].like(Outputs(*jax.eval_shape(f, *at)))
    if choose is not None:
        cotangents = cotangents._replace(y=np.where(choose, cotangents.y, 0))

    @jax.jit
    def everything(at: tuple, along: tuple, cotangents: Outputs) -> tuple:
        _, tangents = jax.jvp(f, at, along)
        outputs, pull = jax.vjp(f, *at)
        return outputs, tangents, pull(cotangents)

    return *everything(tuple(at), tuple(along), cotangents), cotangents


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_outputs_tangents_and_gradients(case: Case) -> None:
    """The output, running statistics and their derivatives in both modes match the oracle."""
    unbiased = len(case.name) % 2 == 0  # both values occur over the cases
    norm, at, along = oracle_of(case, unbiased=unbiased), case.primals(), case.tangents()
    f, fixed = train(case, unbiased=unbiased), 0
    if case.dtype == "int32":  # an integer has no tangent
        f, fixed = partial(f, at.x), 1
        along = along._replace(x=np.zeros(case.shape))
    outputs, tangents, gradients, cotangents = derivatives(f, at[fixed:], along[fixed:])

    assert outputs.y.dtype == case.result_dtype
    for got, want in zip(outputs, norm.value(at), strict=True):
        assert_close(got, want)
    for got, want in zip(tangents, norm.tangent(at, along), strict=True):
        assert_close(got, want, 5e-5)
    for got, want in zip(gradients, norm.gradient(at, cotangents)[fixed:], strict=True):
        assert_close(got, want, 5e-5)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.name)
def test_inference(case: Case) -> None:
    """Evaluation is (x - mean) / sqrt(var + ε) · scale + bias with the running statistics."""
    at, norm = case.primals(), oracle_of(case)

    def f(x: Any, mean: Any, var: Any, scale: Any, bias: Any) -> Any:
        stats = jn.RunningStats(mean, var)
        axes = case.feature_axes
        return jn.batch_norm_inference(x, stats, scale, bias, feature_axes=axes, epsilon=EPSILON)

    y = jax.jit(f)(*at)
    assert y.dtype == case.result_dtype
    assert_close(y, norm.inference(at))


def test_inference_derivatives() -> None:
    """Evaluation has the derivatives of its formula for x, mean, var, scale and bias."""
    case = Case("images", (6, 5, 4, 3))
    at = case.primals()

    def f(at: Primals) -> Any:
        stats = jn.RunningStats(at.mean, at.var)
        return jn.batch_norm_inference(at.x, stats, at.scale, at.bias, epsilon=EPSILON)

    along = Primals(*(draw(case.rng(), a.shape, "float32") for a in at))
    dy = draw(case.rng(), case.shape, "float32")
    sigma = np.sqrt(np.float64(at.var) + EPSILON)
    unit = (at.x - np.float64(at.mean)) / sigma
    inner = at.scale / sigma
    per_feature = Primals(
        inner,
        -inner,
        -0.5 * at.scale * unit / sigma**2,
        unit,
        np.ones(case.shape),
    )
    tangent = jax.jit(lambda: jax.jvp(f, (at,), (along,))[1])()
    assert_close(tangent, sum(d * t for d, t in zip(per_feature, along, strict=True)))
    gradients = jax.jit(lambda: jax.vjp(f, at)[1](dy)[0])()
    for got, d in zip(gradients, per_feature, strict=True):
        want = dy * d
        assert_close(got, want if got.ndim == 4 else want.sum((0, 1, 2)), 5e-5)


@pytest.mark.parametrize("with_mean", [True, False], ids=["selects", "all masked"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inference_with_bad_values_under_the_mask(bad: float, with_mean: bool) -> None:
    """Statistics, scale and bias get gradients from unmasked elements only; masked x gets 0."""
    case = Case("rows", (7, 3))
    at = case.primals()
    mask = (np.arange(7) < 4)[:, None] & with_mean
    clean = at._replace(x=np.where(mask, at.x, np.asarray(at.mean)))
    given = at._replace(x=np.where(mask, at.x, bad).astype("float32"))
    dy = np.where(mask, draw(case.rng(), case.shape, "float32"), 0)

    def f(at: Primals, mask: Any) -> Any:
        stats = jn.RunningStats(at.mean, at.var)
        return jn.batch_norm_inference(at.x, stats, at.scale, at.bias, epsilon=EPSILON, mask=mask)

    y, pullback = jax.vjp(lambda at: f(at, mask), given)
    want, pullback_of_clean = jax.vjp(lambda at: f(at, None), clean)
    assert_close(y, np.asarray(want))
    for got, wanted in zip(pullback(dy)[0], pullback_of_clean(dy)[0], strict=True):
        assert_close(got, np.asarray(wanted))


@pytest.mark.parametrize("which", ["neither", "scale", "bias"])
def test_affine_is_optional(which: str) -> None:
    """A scale of None means 1 and a bias of None means 0, independently, in training and evaluation."""
    case = Case("images", (6, 5, 4, 3))
    at = case.primals()
    stats = jn.RunningStats(at.mean, at.var)
    scale = at.scale if which == "scale" else None
    bias = at.bias if which == "bias" else None
    full = at._replace(
        scale=np.ones(3) if scale is None else scale, bias=np.zeros(3) if bias is None else bias
    )
    norm = BatchNorm(epsilon=EPSILON)
    assert_close(jn.batch_norm(at.x, stats, scale, bias, epsilon=EPSILON)[0], norm.value(full).y)
    y = jn.batch_norm_inference(at.x, stats, scale, bias, epsilon=EPSILON)
    assert_close(y, norm.inference(full))


def test_complex_parameters() -> None:
    """Complex scale and bias get complex gradients for a complex input."""
    case = Case("complex", (9, 2), mask_name="full", dtype="complex64", param_dtype="complex64")
    at, norm = case.primals(), oracle_of(case)
    outputs, _, gradients, cotangents = derivatives(train(case), at, case.tangents())
    assert_close(outputs.y, norm.value(at).y)
    for got, want in zip(gradients, norm.gradient(at, cotangents), strict=True):
        assert_close(got, want, 5e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("x_dtype", ["bfloat16", "float16", "float32"])
def test_dtype_is_of_the_output_alone(x_dtype: str, dtype: str) -> None:
    """dtype= rounds y once; statistics stay float32 and exact for the stored input."""
    case = Case("images", (6, 12, 11, 3), dtype=x_dtype)
    at, norm = case.primals(), oracle_of(case)
    outputs = jax.jit(train(case, dtype=dtype))(*at)
    assert outputs.y.dtype == jnp.dtype(dtype)
    assert outputs.mean.dtype == outputs.var.dtype == jnp.float32
    for got, want in zip(outputs, norm.value(at), strict=True):
        assert_close(got, want)
    stats = jn.RunningStats(at.mean, at.var)
    y = jn.batch_norm_inference(at.x, stats, at.scale, at.bias, epsilon=EPSILON, dtype=dtype)
    assert y.dtype == jnp.dtype(dtype)
    assert_close(y, norm.inference(at))


# --- extremes ------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["offset", "outlier_first", "small_outlier_first", "drift"])
@pytest.mark.parametrize("shape", [(40009, 3), (64, 28, 28, 3), (5, 40009, 3)], ids=str)
def test_variance_is_stable(shape: tuple[int, ...], kind: str, masked: bool) -> None:
    """At mean/std = 1e4 the relative error of the variance is below 1e-3, even after an outlier."""
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal(shape)).astype(np.float32)
    if kind == "outlier_first":
        x[(0,) * (x.ndim - 1)] = 1e7
    if kind == "small_outlier_first":
        x[(0,) * (x.ndim - 1)] = 2e4
    if kind == "drift":  # the first half is far from the rest
        x[: len(x) // 2] -= np.float32(1e4)
    mask = rng.random((*shape[:-1], 1)) < 0.7 if masked else None
    if mask is not None:
        mask[(0,) * (x.ndim - 1)] = True
    axes = tuple(range(x.ndim - 1))
    stats = jn.init_running_stats(3)
    y, stats = jax.jit(lambda x, m: jn.batch_norm(x, stats, mask=m, momentum=0.0))(x, mask)
    want = BatchNorm(momentum=0.0, mask=mask).value(
        Primals(x, np.zeros(3), np.ones(3), np.ones(3), np.zeros(3))
    )
    np.testing.assert_allclose(stats.var, want.var, rtol=1e-3)
    sigma = np.sqrt(want.var)
    np.testing.assert_allclose(stats.mean / sigma, want.mean / sigma, rtol=2e-7, atol=1e-3)
    spread = np.std(y, axis=axes, where=True if mask is None else mask)
    np.testing.assert_allclose(spread, 1, rtol=1e-3)


@pytest.mark.sampled
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e4, -3e-3])
@pytest.mark.parametrize("shape", [(301, 3), (7, 12, 11, 3)], ids=str)
def test_constant_input(shape: tuple[int, ...], value: float, masked: bool) -> None:
    """A constant input has no variance (to 1e-3 of ε): y is the bias and its gradient is finite."""
    x = jnp.full(shape, value, jnp.float32)
    mask = jnp.asarray(np.random.default_rng(0).random((*shape[:-1], 1)) < 0.7) if masked else None
    bias = jnp.array([1.0, 2.0, 3.0])
    stats = jn.init_running_stats(3)

    def f(x: jax.Array) -> Any:
        return jn.batch_norm(x, stats, None, bias, mask=mask, momentum=0.0)

    @jax.jit
    def both(x: jax.Array) -> Any:
        outputs, pull = jax.vjp(f, x)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    (y, stats), (dx,) = both(x)
    rounding = 3e-7 * abs(value) / np.sqrt(1e-5)  # of the mean, multiplied by 1/sqrt(ε)
    np.testing.assert_allclose(y, np.broadcast_to(bias, shape), atol=rounding + 1e-6)
    assert stats.var.min() >= 0 and stats.var.max() <= max(1e-8, (3e-7 * value) ** 2)
    assert jnp.isfinite(dx).all()


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("shape", [(17, 3), (6, 12, 11, 3)], ids=str)
def test_padding_is_never_read(shape: tuple[int, ...], fill: float) -> None:
    """Masked values do not affect statistics, other outputs or any gradient."""
    case = Case(f"padding{shape}", shape, mask_name="full")
    at, mask = case.primals(), case.mask()
    filled = at._replace(x=np.where(mask, at.x, np.float32(fill)))
    norm = oracle_of(case)
    along = case.tangents()
    outputs, tangent, got_gradients, cotangents = derivatives(train(case), filled, along, mask)
    want, gradients = norm.value(at), norm.gradient(at, cotangents)
    assert_close(jnp.where(mask, outputs.y, 0), np.where(mask, want.y, 0))
    assert_close(outputs.mean, want.mean)
    assert_close(outputs.var, want.var)
    for got, grad in zip(got_gradients, gradients, strict=True):
        assert_close(got, grad, 5e-5)
    if not np.isfinite(fill):
        assert_close(outputs.y, norm.value(filled).y)  # masked x reads as the mean
    assert_close(tangent.mean, norm.tangent(at, along).mean)
    assert_close(tangent.var, norm.tangent(at, along).var, 5e-5)
    assert np.isfinite(np.where(mask, tangent.y, 0)).all()


def test_cotangents_of_nan_padding() -> None:
    """An output that equals the bias whatever x is passes no gradient to any element of x."""
    case = Case("padding", (17, 3), mask_name="full")
    at, mask = case.primals(), case.mask()
    at = at._replace(x=np.where(mask, at.x, np.float32(np.nan)))
    _, _, gradients, cotangents = derivatives(train(case), at, case.tangents())
    for got, want in zip(gradients, oracle_of(case).gradient(at, cotangents), strict=True):
        assert_close(got, want, 5e-5)


def test_a_counted_nan_is_not_hidden() -> None:
    """An unmasked NaN shows in y and in the state, in its own feature only."""
    x = jnp.ones((5, 2)).at[1, 0].set(jnp.nan)
    mask = jnp.arange(5)[:, None] < 4
    for m in (None, mask):
        y, stats = jn.batch_norm(x, jn.init_running_stats(2), mask=m)
        assert jnp.isnan(y[:, 0]).all() and jnp.isnan(stats.mean[0]) and jnp.isnan(stats.var[0])
        assert jnp.isfinite(y[:, 1]).all() and jnp.isfinite(stats.var[1])


@pytest.mark.sampled
@pytest.mark.parametrize("momentum", [0.99, 0.0, None])
@pytest.mark.parametrize("shape", [(0, 3), (0, 12, 12, 3), (5, 3), (5, 12, 12, 3)], ids=str)
def test_nothing_counted(shape: tuple[int, ...], momentum: float | None) -> None:
    """If everything is masked, running statistics are unchanged bit for bit and all else is finite."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(draw(rng, shape, "float32"))
    mask = jnp.zeros((shape[0],) + (1,) * (len(shape) - 1), bool)
    count = jnp.array(3, jnp.int32) if momentum is None else None
    mean, var = jnp.asarray(draw(rng, (2, 3), "float32", 5.0))
    stats = jn.RunningStats(mean, var, count)

    def f(x: jax.Array) -> Any:
        return jn.batch_norm(x, stats, mask=mask, momentum=momentum, unbiased=True)

    y, after = jax.jit(f)(x)
    jax.tree.map(np.testing.assert_array_equal, after, stats)
    dx = jax.jit(jax.grad(lambda x: sum(leaf.sum() for leaf in (f(x)[0], *f(x)[1][:2]))))(x)
    assert y.shape == dx.shape == shape
    assert jnp.isfinite(y).all() and jnp.isfinite(dx).all()


def test_one_value_leaves_no_infinity() -> None:
    """In a batch of one, the n / (n - 1) correction does not turn the stored variance into NaN."""
    x = jnp.array([[2.0, -3.0]])
    y, stats = jn.batch_norm(x, jn.init_running_stats(2), momentum=0.5, unbiased=True)
    np.testing.assert_array_equal(y, np.zeros((1, 2)))
    np.testing.assert_array_equal(stats.mean, [1.0, -1.5])
    np.testing.assert_array_equal(stats.var, [0.5, 0.5])


# --- running statistics --------------------------------------------------------------------------


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_state_is_a_scan_carry(dtype: str, cumulative: bool) -> None:
    """The state keeps its shapes and dtypes, and a scan over steps equals a loop over steps."""
    momentum = None if cumulative else 0.9
    kind = "complex64" if dtype == "complex64" else "float32"
    start = jn.init_running_stats(3, jnp.dtype(kind), cumulative=cumulative)
    xs = jnp.asarray(draw(np.random.default_rng(0), (4, 8, 3), dtype, 2.0))

    def step(stats: jn.RunningStats, x: jax.Array) -> tuple[jn.RunningStats, None]:
        return jn.batch_norm(x, stats, momentum=momentum)[1], None

    scanned, _ = jax.lax.scan(step, start, xs)
    looped = start
    compiled = jax.jit(step)
    for x in xs:
        looped, _ = compiled(looped, x)
    assert [a.dtype for a in scanned[:2]] == [a.dtype for a in start[:2]]
    jax.tree.map(lambda a, b: assert_close(a, np.asarray(b)), scanned, looped)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_momentum_weighs_the_old_value(momentum: float) -> None:
    """A momentum of 0 takes the batch, 1 keeps the state exactly, and others mix; it may be traced."""
    case = Case("rows", (5, 3))
    at = case.primals()
    stats = jn.RunningStats(jnp.asarray(at.mean), jnp.asarray(at.var))
    want = BatchNorm(momentum=momentum).value(at)
    for m in (momentum, jnp.float32(momentum)):
        _, new = jax.jit(lambda m: jn.batch_norm(at.x, stats, momentum=m))(m)
        assert_close(new.mean, want.mean)
        assert_close(new.var, want.var)
    if momentum == 1:
        _, new = jn.batch_norm(at.x, stats, momentum=momentum)
        jax.tree.map(np.testing.assert_array_equal, new, stats)


@contextlib.contextmanager
def float64() -> Any:
    """Enables float64."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("case", [CASES[8], CASES[18], CASES[23]], ids=lambda c: c.name)
@pytest.mark.parametrize("state", ["float32", "float64"])
def test_float64(case: Case, state: str) -> None:
    """With x64, all results for float64 input agree to 1e-10, except those that float32 state rounds."""
    at, norm = case.primals(), oracle_of(case)
    at = Primals(*(np.float64(a) for a in at))
    with float64():
        at = at._replace(mean=at.mean.astype(state), var=at.var.astype(state))
        outputs, _, gradients, cotangents = derivatives(train(case), at, at)
        assert outputs.y.dtype == gradients[0].dtype == jnp.float64
        assert outputs.mean.dtype == outputs.var.dtype == jnp.dtype(state)
        assert_close(outputs.y, norm.value(at).y, 1e-10)
        assert_close(outputs.var, norm.value(at).var, 1e-10 if state == "float64" else 1e-6)
        assert_close(gradients[0], norm.gradient(at, cotangents).x, 1e-10)
