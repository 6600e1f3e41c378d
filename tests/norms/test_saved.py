"""`save_as` keeps the value, and takes gradients from the output or from a rounded normalized x."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from tests.cases import draw
from tests.modules import assert_equal, compiled, ramp
from tests.oracle import BatchNorm, Outputs, Primals
from tests.selecting import thorough_but

SHAPE = (6, 5, 4, 8)
ACTIVATIONS = [None, "relu", "leaky_relu", "silu", "gelu"]
# What is saved, the activations that it supports, and the tolerance of the gradients.
OUTPUT = [("output", None), ("output", "leaky_relu")]
ROUNDED = [(dtype, a) for dtype in ("bfloat16", "float16") for a in ACTIVATIONS]
TOLERANCES = {"output": 1e-5, "bfloat16": 1e-2, "float16": 1.5e-3}
every_way = pytest.mark.parametrize(("save_as", "activation"), [*OUTPUT, *ROUNDED])
a_few_ways = pytest.mark.parametrize(
    ("save_as", "activation"), [*OUTPUT, ("bfloat16", "relu"), ("float16", "silu")]
)


def arguments(shape: tuple[int, ...] = SHAPE, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """x, scale and bias; no channel has a scale near 0."""
    rng = np.random.default_rng(0)
    scale, bias = rng.uniform(0.5, 2, shape[-1]), rng.uniform(-1, 1, shape[-1])
    scale[::3] *= -1
    x = draw(rng, shape, dtype, 2.0, 3.0)
    return x, np.float32(scale), np.float32(bias)


def norm(
    x: Any,
    scale: Any,
    bias: Any,
    *,
    save_as: Any = None,
    activation: str | None = None,
    **more: Any,
) -> tuple[jax.Array, jn.RunningStats]:
    """Calls `batch_norm` in training."""
    stats = jn.init_running_stats(x.shape[-1])
    return jn.batch_norm(
        x, stats, scale, bias, save_as=save_as, activation=activation, momentum=0.5, **more
    )


def loss(*at: Any, **options: Any) -> jax.Array:
    """A scalar that depends differently on every entry of y and the statistics."""
    y, stats = norm(*at, **options)
    weights = draw(np.random.default_rng(1), y.shape, "float32")
    return (y.astype(jnp.float32) * weights).sum() + (stats.mean * stats.var).sum()


def gradients(*at: Any, **options: Any) -> Any:
    """The gradients of `loss` with respect to x, scale and bias, compiled."""
    return jax.jit(jax.grad(lambda *at: loss(*at, **options), (0, 1, 2)))(*at)


def assert_near(got: Any, want: Any, tolerance: float) -> None:
    """Compares two trees up to ``tolerance`` times the largest entry of each leaf."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("dtype", "mode"), [("float32", "with derivatives"), ("bfloat16", "value")]
)
@every_way
def test_value(save_as: str, activation: str | None, dtype: str, mode: str) -> None:
    """Output and running statistics are the same bit for bit as without save_as."""
    at = arguments(dtype=dtype)

    def value(save_as: Any, *at: Any) -> Any:
        f = lambda *at: norm(*at, save_as=save_as, activation=activation)  # noqa: E731
        return f(*at) if mode == "value" else jax.vjp(f, *at)[0]

    f = jax.jit(value, static_argnums=0)
    assert_equal(f(save_as, *at), f(None, *at))


@pytest.mark.sampled
@every_way
def test_gradients(save_as: str, activation: str | None) -> None:
    """The gradients of x, scale and bias are off by at most the rounding error."""
    at = arguments()
    want = gradients(*at, activation=activation)
    got = gradients(*at, activation=activation, save_as=save_as)
    assert_near(got, want, TOLERANCES[save_as])


@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_gradients_of_a_narrow_output(activation: str | None) -> None:
    """A bfloat16 output determines x up to its rounding, which leaky_relu does not amplify."""
    at = arguments()
    options: dict[str, Any] = {"activation": activation, "dtype": jnp.bfloat16}
    want = gradients(*at, **options)
    assert_near(gradients(*at, **options, save_as="output"), want, 2e-2)


def test_what_is_rounded_is_seen() -> None:
    """The comparison above distinguishes bfloat16 from float16, and float16 from float32."""
    at = arguments()
    want = gradients(*at)
    for save_as, finer in (("bfloat16", "float16"), ("float16", "output")):
        with pytest.raises(AssertionError):
            assert_near(gradients(*at, save_as=save_as), want, TOLERANCES[finer] / 4)


@pytest.mark.sampled
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize(
    ("save_as", "scale", "bias"),
    [
        ("bfloat16", 2.0, 1.0),
        ("bfloat16", -2.0, 1.0),
        ("bfloat16", 4.0, -3.0),
        ("float16", 1.0, -0.5),
        ("float16", 1.0, 0.0),
    ],
)
def test_near_the_kink(save_as: str, scale: float, bias: float, activation: str) -> None:
    """Rounding never moves an element across the kink, even if the kink is representable in that dtype.

    Half of the normalized values are closer to -bias / scale than ``save_as`` can resolve.
    """
    rng = np.random.default_rng(0)
    kink, spacing = -bias / scale, float(jnp.finfo(save_as).eps) * max(abs(bias / scale), 0.1)
    near = kink + rng.uniform(-0.5, 0.5, 64) * spacing
    rest = rng.standard_normal(64)
    rest = (rest - rest.mean()) / rest.std()
    far = 64 * (2 - (near**2).mean()) / 64  # so that all values have mean 0 and variance 1
    root = math.sqrt(far - near.mean() ** 2)
    x = np.float32(np.concatenate([near, rest * root - near.mean()])[:, None])
    at = x, np.full(1, scale, np.float32), np.full(1, bias, np.float32)
    options: dict[str, Any] = {"activation": activation, "epsilon": 0.0}

    def pull(save_as: Any) -> Any:
        f = lambda *at: norm(*at, save_as=save_as, **options)[0]  # noqa: E731
        return jax.jit(lambda at: jax.vjp(f, *at)[1](dy))(at)

    v = scale * (np.float64(x) - np.float64(x).mean()) / np.float64(x).std() + bias
    assert (np.abs(v) < abs(scale) * spacing).sum() >= 64
    slope = np.where(v > 0, 1.0, {"relu": 0.0, "leaky_relu": 0.01}[activation])
    sure = np.abs(v) > 1e-6
    assert sure.sum() > 120
    dy = np.float32(
        draw(rng, x.shape, "float32") * sure
    )  # skips elements with a sign that float32 cannot determine
    want = BatchNorm(epsilon=0.0).gradient(
        Primals(x, np.zeros(1), np.ones(1), *at[1:]), Outputs(dy * slope, np.zeros(1), np.zeros(1))
    )
    got = pull(save_as)
    # A single element on the wrong side would change Σdy, and so the bias gradient, by its dy.
    assert_near((got[2],), (np.float32(want.bias),), 1e-5 / min(1, float(np.abs(want.bias[0]))))
    assert_near((got[0],), (np.float32(want.x),), TOLERANCES[save_as])


@pytest.mark.parametrize("save_as", ["output", "bfloat16"])
def test_wider_parameters(save_as: str) -> None:
    """A float64 scale widens the result, and the gradients keep the dtypes of their arguments."""
    with jax.enable_x64(True):
        x, scale, bias = arguments()
        at = jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float64), jnp.asarray(bias)
        got, want = gradients(*at, save_as=save_as), gradients(*at)
        assert [g.dtype for g in got] == [a.dtype for a in at]
        assert_near(got, want, TOLERANCES[save_as])


@pytest.mark.parametrize("save_as", ["output", "bfloat16"])
def test_sums_are_not_differentiated(save_as: str) -> None:
    """The sums of the forward pass are taken from x, their derivatives from the recovered x."""
    at = arguments((7, 3))  # a shape of its own, so that it is traced here
    program = str(jax.make_jaxpr(jax.grad(partial(loss, save_as=save_as)))(*at))
    assert program.count("norm_central_sums[") == 1 and "differentiated=False" in program


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_values_that_the_dtype_cannot_hold(activation: str) -> None:
    """A normalized value that would be rounded to 0 stays on its side of it."""
    x = jnp.array([[-1.0], [1.0], [-1e-9], [1e-9]])
    for only in (2, 3):
        dy = jnp.zeros_like(x).at[only].set(1.0)

        def pull(save_as: Any, dy: Any = dy) -> Any:
            options: dict[str, Any] = {"save_as": save_as, "activation": activation}
            return jax.vjp(lambda x: norm(x, None, None, **options)[0], x)[1](dy)

        assert_near(jax.jit(pull, static_argnums=0)("float16"), pull(None), TOLERANCES["float16"])


@a_few_ways
def test_with_a_name(save_as: str, activation: str | None) -> None:
    """With an axis name, gradients over devices match those of the whole batch on one."""
    x, *affine = arguments((16, 5, 8))
    dy = draw(np.random.default_rng(2), x.shape, "float32")

    def pull(x: Any, dy: Any, **more: Any) -> Any:
        f = lambda *at: norm(*at, activation=activation, **more)  # noqa: E731
        y, back, stats = jax.vjp(f, x, *affine, has_aux=True)
        return y, stats, back(dy)

    @jax.jit
    def mapped(x: Any, dy: Any) -> Any:
        several = lambda x, dy: pull(x, dy, axis_name="d", save_as=save_as)  # noqa: E731
        y, stats, (dx, *rest) = jax.vmap(several, axis_name="d")(
            *(a.reshape(4, 4, 5, 8) for a in (x, dy))
        )
        whole = (y.reshape(x.shape), jax.tree.map(lambda a: a[0], stats))
        return *whole, (dx.reshape(x.shape), *(a.sum(0) for a in rest))

    y, stats, want = jax.jit(pull)(x, dy)
    ours, moved, got = mapped(x, dy)
    assert_near((ours, moved), (y, stats), 1e-5)
    assert_near(got, want, TOLERANCES[save_as])


@a_few_ways
def test_forward_mode_and_second_order(save_as: str, activation: str | None) -> None:
    """Derivatives along a direction, and Hessian products in three nestings, are finite and close."""
    at = arguments()
    along = tuple(draw(np.random.default_rng(3), a.shape, "float32") for a in at)

    def derivatives(at: Any, save_as: Any) -> Any:
        f = lambda at: loss(*at, save_as=save_as, activation=activation)  # noqa: E731
        grad = jax.grad(f)
        slope = lambda at: jax.jvp(f, (at,), (along,))[1]  # noqa: E731
        paired = lambda at: sum(jnp.vdot(g, a) for g, a in zip(grad(at), along, strict=True))  # noqa: E731
        hessians = jax.jvp(grad, (at,), (along,))[1], jax.grad(paired)(at), jax.grad(slope)(at)
        return slope(at), hessians

    slope, hessians = jax.jit(lambda at: derivatives(at, save_as))(at)
    want_slope, want = jax.jit(lambda at: derivatives(at, None))(at)
    assert abs(float(slope - want_slope)) <= TOLERANCES[save_as] * abs(float(want_slope)) * 3
    largest = max(float(jnp.abs(h).max()) for h in want[0])
    for got in hessians:
        for g, w in zip(got, want[0], strict=True):
            np.testing.assert_allclose(g, w, rtol=0, atol=TOLERANCES[save_as] * largest)


def slope_of_penalty(*at: Any, **options: Any) -> Any:
    """The gradient of a gradient penalty."""
    f = lambda *at: loss(*at, **options)  # noqa: E731
    return jax.grad(lambda *at: (jax.grad(f)(*at) ** 2).sum(), (0, 1, 2))(*at)


@pytest.mark.parametrize("mapped", [(0, None, None), (None, 0, None), (0, 0, 0)], ids=str)
@a_few_ways
def test_second_order_under_vmap(save_as: str, activation: str | None, mapped: Any) -> None:
    """Second-order derivatives have a batching rule for any choice of mapped arguments."""
    at, slope = arguments((6, 8)), partial(slope_of_penalty, save_as=save_as, activation=activation)
    given = [a if i is None else jnp.stack([a, a]) for a, i in zip(at, mapped, strict=True)]
    slopes = jax.eval_shape(jax.vmap(slope, mapped), *given)
    assert [s.shape for s in slopes] == [(2, *a.shape) for a in at]


@pytest.mark.thorough
@a_few_ways
def test_second_order_of_two(save_as: str, activation: str | None) -> None:
    """Vmapped second-order derivatives match those taken one at a time."""
    slope = partial(slope_of_penalty, save_as=save_as, activation=activation)
    two = jax.tree.map(lambda a: jnp.stack([a, -a]), arguments((6, 8)))
    one_by_one = lambda two: jax.lax.map(lambda at: slope(*at), two)  # noqa: E731
    together, alone = jax.jit(lambda two: (jax.vmap(slope)(*two), one_by_one(two)))(two)
    assert_near(together, alone, 1e-5)


@a_few_ways
def test_remat_and_eager(save_as: str, activation: str | None) -> None:
    """Gradients are the same under `jax.checkpoint`, which saves nothing, and without jit."""
    at = arguments()
    f = lambda *at: loss(*at, save_as=save_as, activation=activation)  # noqa: E731
    want = gradients(*at, save_as=save_as, activation=activation)
    again = jax.jit(jax.grad(jax.checkpoint(f), (0, 1, 2)))(*at)
    assert_near(again, want, TOLERANCES[save_as])
    assert_near(jax.grad(f, (0, 1, 2))(*map(jnp.asarray, at)), want, TOLERANCES[save_as])


def large_residuals(f: Any, x: Any, *others: Any) -> list[str]:
    """The dtypes of residuals of ``f`` that are as large as x."""
    avals: list[Any] = [a for a, _ in saved_residuals(f, x, *others)]
    return sorted(str(a.dtype) for a in avals if a.size >= x.size)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_way
def test_saved(save_as: str, activation: str | None, dtype: str) -> None:
    """One array of the size of x is saved: the output, or the normalized x in the requested dtype."""
    at = tuple(a.astype(dtype) for a in arguments())
    found = large_residuals(lambda *at: norm(*at, save_as=save_as, activation=activation), *at)
    assert found == [dtype if save_as == "output" else save_as]


@pytest.mark.jax_0_10
def test_the_output_is_what_is_saved() -> None:
    """The output itself is saved, neither a copy nor x, so the next layer can share it."""
    x, scale, bias = arguments()

    def two(x: Any, *affine: Any) -> Any:
        y, _ = norm(x, *affine, save_as="output", activation="leaky_relu")
        return jnp.sin(y)  # saves y or its cosine

    assert len(large_residuals(two, x, scale, bias)) == 2
    y, pull = jax.vjp(lambda *at: norm(*at, save_as="output")[0], x, scale, bias)
    kept = [a for a in jax.tree.leaves(pull) if getattr(a, "size", 0) >= x.size]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], y)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (None, ["float32"]),
        ("relu", ["bool", "float32"]),
        ("leaky_relu", ["bool", "float32"]),
        ("silu", ["float32", "float32"]),
        ("gelu", ["float32", "float32"]),
    ],
)
def test_saved_of_a_residual(activation: str | None, expected: list[str]) -> None:
    """A piecewise linear activation saves x and a boolean for each element, others x and the residual."""
    x, *affine = arguments()

    def f(x: Any, residual: Any, *affine: Any) -> Any:
        return norm(x, *affine, activation=activation, residual=residual)

    assert large_residuals(f, x, x[::-1], *affine) == expected


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("scale", "bias"), [(0.0, 0.5), (0.0, 0.0), (1e-4, 1.0), (1.0, 1e5), (-1.0, -1e5)]
)
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_an_output_that_does_not_say(activation: str | None, scale: float, bias: float) -> None:
    """If scale is 0, or tiny next to bias, only that channel's gradients are NaN."""
    x, scales, biases = arguments()
    scales[2], biases[2] = scale, bias
    assert_equal(
        *(norm(x, scales, biases, save_as=s, activation=activation) for s in ("output", None))
    )
    want = gradients(x, scales, biases, activation=activation)
    got = gradients(x, scales, biases, activation=activation, save_as="output")
    assert np.isnan(got[0][..., 2]).all() and np.isnan(got[1][2])
    others = [i for i in range(SHAPE[-1]) if i != 2]
    got, want = ([a[..., others] for a in g] for g in (got, want))
    assert_near(got, want, TOLERANCES["output"])


@pytest.mark.sampled
@pytest.mark.parametrize("save_as", ["bfloat16", "float16"])
@pytest.mark.parametrize(("scale", "bias"), [(0.0, 0.5), (0.0, 0.0), (1e-4, 1.0), (1.0, 1e5)])
def test_a_rounded_x_does_not_need_the_output(save_as: str, scale: float, bias: float) -> None:
    """The same channels have correct gradients if the normalized x is saved."""
    x, scales, biases = arguments()
    scales[2], biases[2] = scale, bias
    want = gradients(x, scales, biases, activation="relu")
    got = gradients(x, scales, biases, activation="relu", save_as=save_as)
    assert_near(got, want, TOLERANCES[save_as])


@pytest.mark.parametrize(
    "save_as",
    [
        None,
        "output",
        "bfloat16",
    ],
)
def test_constant_channels_without_epsilon(save_as: Any) -> None:
    """With variance 0 and epsilon 0, gradients are finite."""
    x, *affine = arguments()
    x[..., 1] = 3.0
    got = gradients(x, *affine, save_as=save_as, epsilon=0.0)
    assert all(jnp.isfinite(g).all() for g in got)


LAYERS = 16
# Bytes of temporaries per layer, in units of one activation.
ROOM: dict[Any, tuple[float, float]] = {
    None: (1.9, 2.2),
    "output": (0.9, 1.2),
    "bfloat16": (1.4, 1.7),
}


@pytest.mark.parametrize("save_as", thorough_but(ROOM, "output"))
def test_memory_of_a_deep_stack(save_as: Any) -> None:
    """A layer of matmul, norm and leaky_relu saves one activation with "output", 1.5 with bfloat16.

    Without save_as it saves two: the input of the norm and that of the next layer.
    """
    rows, width = 4096, 64

    def stack(kernels: Any, x: Any) -> jax.Array:
        for kernel in kernels:
            x = x @ kernel
            affine = jnp.ones(width), jnp.zeros(width)
            x, _ = norm(x, *affine, save_as=save_as, activation="leaky_relu")
        return (x**2).sum()

    kernels = [jax.ShapeDtypeStruct((width, width), "float32")] * LAYERS
    x = jax.ShapeDtypeStruct((rows, width), "float32")
    memory = jax.jit(jax.grad(stack)).lower(kernels, x).compile().memory_analysis()
    assert memory is not None
    least, most = ROOM[save_as]
    assert least < memory.temp_size_in_bytes / (4 * rows * width) / LAYERS <= most


@pytest.mark.jax_0_10
@pytest.mark.parametrize(("save_as", "activation"), [*OUTPUT, ("bfloat16", "relu")])
def test_modules(save_as: str, activation: str | None) -> None:
    """Linen and NNX pass save_as on: values and gradients match the function bit for bit."""
    x = arguments()[0]
    affine = (ramp(jax.random.key(0), SHAPE[-1:]),) * 2
    fields: dict[str, Any] = {"scale_init": ramp, "bias_init": ramp, "activation": activation}
    fields |= {"save_as": save_as, "momentum": 0.5}
    linen = jnl.BatchNorm(**fields)
    variables = linen.init(jax.random.key(0), x, use_running_average=False)

    def of_function(x: Any) -> jax.Array:
        return norm(x, *affine, save_as=save_as, activation=activation)[0]

    def of_linen(x: Any) -> jax.Array:
        return linen.apply(variables, x, use_running_average=False, mutable=["batch_stats"])[0]  # type: ignore[return-value]

    def of_nnx(x: Any) -> jax.Array:
        return jnx.BatchNorm(SHAPE[-1], rngs=nnx.Rngs(0), **fields)(x)

    def both(f: Any) -> Any:
        return compiled(lambda x: (lambda y, pull: (y, pull(y)))(*jax.vjp(f, x)), x)

    want = both(of_function)
    assert_equal(both(of_linen), want)
    assert_equal(both(of_nnx), want)
    kept = [large_residuals(f, x) for f in (of_linen, of_nnx)]
    assert kept == [["float32" if save_as == "output" else "bfloat16"]] * 2
