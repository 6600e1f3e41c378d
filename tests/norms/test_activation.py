"""Batch norm with activation and residual matches the three separate steps, with all derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from tests.cases import EPSILON, MOMENTUM, Case, draw
from tests.modules import assert_equal, compiled, ramp
from tests.oracle import BatchNorm, Outputs, Primals, assert_close, complement, wide


def sigmoid(v: Any) -> Any:
    """1 / (1 + exp(-v))."""
    return 1 / (1 + np.exp(-v))


def gelu(v: Any) -> tuple[Any, Any]:
    """Hendrycks and Gimpel (2016), the tanh form, and its derivative."""
    root = np.sqrt(2 / np.pi)
    tanh = np.tanh(root * (v + 0.044715 * v**3))
    inner = root * (1 + 3 * 0.044715 * v**2)
    return 0.5 * v * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * v * (1 - tanh**2) * inner


# Each returns the value and the derivative in float64.
ORACLES: dict[str | None, Callable[[Any], tuple[Any, Any]]] = {
    None: lambda v: (v, np.ones_like(v)),
    "relu": lambda v: (np.maximum(v, 0), np.where(v > 0, 1.0, 0.0)),
    "leaky_relu": lambda v: (np.where(v > 0, v, 0.01 * v), np.where(v > 0, 1.0, 0.01)),
    "silu": lambda v: (v * sigmoid(v), sigmoid(v) * (1 + v * (1 - sigmoid(v)))),
    "gelu": gelu,
}
OF_JAX: dict[str | None, Callable[[Any], Any]] = {
    None: lambda v: v,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}
ACTIVATIONS = [name for name in OF_JAX if name]
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
with_and_without = pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])


class Arguments(NamedTuple):
    """The arguments of one training step: what batch norm reads, and the residual."""

    at: Primals
    residual: Any


def arguments(case: Case) -> Arguments:
    """Random arguments; half of the masked elements are NaN."""
    at, mask = case.primals(), case.mask()
    if mask is not None:
        rng = np.random.default_rng(6)
        unread = ~mask & (rng.random(case.shape) < 0.5)
        at = at._replace(x=np.where(unread, np.asarray(np.nan, at.x.dtype), at.x))
    return Arguments(at, draw(np.random.default_rng(31), case.shape, case.dtype))


def options_of(case: Case) -> dict[str, Any]:
    """The options of batch norm for ``case``."""
    mask = None if case.mask_name is None else jnp.asarray(case.mask())
    return {"feature_axes": case.feature_axes, "epsilon": EPSILON, "mask": mask}


def train(
    case: Case, activation: str | None, at: Primals, residual: Any, **more: Any
) -> tuple[jax.Array, jn.RunningStats]:
    """Calls `batch_norm` on the arguments."""
    x, mean, var, scale, bias = at
    options = options_of(case) | {"activation": activation, "residual": residual} | more
    return jn.batch_norm(x, jn.RunningStats(mean, var), scale, bias, momentum=MOMENTUM, **options)


def oracle_of(case: Case) -> BatchNorm:
    """The same norm in float64, without the activation."""
    return BatchNorm(case.feature_axes, MOMENTUM, EPSILON, mask=case.mask())


def before(case: Case, given: Arguments) -> Any:
    """The input of the activation in float64, checked to be far enough from 0 that its sign is certain."""
    v = oracle_of(case).value(given.at).y
    v = v if given.residual is None else v + wide(given.residual)
    assert np.abs(v).min() > 1e-5, "too near a kink for float32: take another seed"
    return v


def gradient(case: Case, activation: str | None, given: Arguments, cts: Outputs) -> Arguments:
    """Gradients of Σ cotangents · outputs, in float64."""
    dv = wide(cts.y) * ORACLES[activation](before(case, given))[1]
    of_residual = None if given.residual is None else dv
    return Arguments(oracle_of(case).gradient(given.at, cts._replace(y=dv)), of_residual)


def hessian_times(
    case: Case, activation: str, given: Arguments, cts: Outputs, along: Arguments, h: float = 1e-5
) -> Arguments:
    """The derivative of the gradient along ``along``, by central differences of the closed form."""
    ends = (
        gradient(
            case,
            activation,
            jax.tree.map(lambda a, d: wide(a) + s * wide(d), given, along),  # noqa: B023
            cts,
        )
        for s in (h, -h)
    )
    return jax.tree.map(lambda a, b: (a - b) / (2 * h), *ends)


LAYOUTS = {"last": ((6, 5, 4, 3), -1), "first": ((5, 3, 6, 4), 1)}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("dtype", "layout", "masked"),
    [
        ("float32", "last", False),
        ("float32", "first", True),
        ("bfloat16", "first", False),
        ("float16", "last", True),
    ],
)
@with_and_without
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_value_and_gradients(
    activation: str | None, adds: bool, dtype: str, layout: str, masked: bool
) -> None:
    """The output, statistics and gradients for random cotangents match the float64 oracle."""
    shape, axis = LAYOUTS[layout]
    case = Case(layout + dtype, shape, axis, dtype, dtype, "full" if masked else None)
    given = arguments(case)
    given = given if adds else given._replace(residual=None)

    @jax.jit
    def both(given: Arguments, cts: Outputs) -> Any:
        f = lambda given: train(case, activation, *given)  # noqa: E731
        (y, stats), pull = jax.vjp(f, given)
        return y, stats, pull((cts.y, jn.RunningStats(cts.mean, cts.var)))[0]

    value = oracle_of(case).value(given.at)
    want = value._replace(y=ORACLES[activation](before(case, given))[0])
    cts = case.like(Outputs(given.at.x, given.at.mean, given.at.var))
    y, stats, gradients = both(given, cts)
    assert y.dtype == jnp.dtype(dtype)
    for got, expected in zip((y, stats.mean, stats.var), want, strict=True):
        assert_close(got, expected)
    wanted = gradient(case, activation, given, cts)
    for got, expected, a in zip(gradients.at, wanted.at, given.at, strict=True):
        assert got.dtype == a.dtype
        assert_close(got, expected, 1e-4)
    if adds:
        assert gradients.residual.dtype == jnp.dtype(dtype)
        assert_close(gradients.residual, wanted.residual, 1e-4)


# The tanh of gelu rounds to 1 in float32 before its derivatives reach 0: the first is then off by 3e-6,
# the second by 2e-5.
FIRST = {"gelu": 1e-4}
SECOND = {"gelu": 1e-3}

IMAGES = Case("of an activation", (6, 5, 4, 3))
HALF = Case("of an activation", (6, 5, 4, 3), dtype="bfloat16", param_dtype="bfloat16")


@pytest.mark.sampled
@pytest.mark.parametrize("case", [IMAGES, HALF], ids=lambda case: case.dtype)
@with_and_without
@every_activation
def test_evaluation(activation: str, adds: bool, case: Case) -> None:
    """Evaluation matches the oracle in value and all gradients, including for the running statistics."""
    given = arguments(case)
    given = given if adds else given._replace(residual=None)

    def evaluate(given: Arguments) -> jax.Array:
        (x, mean, var, *affine), residual = given
        return jn.batch_norm_inference(
            x,
            jn.RunningStats(mean, var),
            *affine,
            epsilon=EPSILON,
            activation=activation,
            residual=residual,
        )

    @jax.jit
    def both(given: Arguments, dy: Any) -> Any:
        y, pull = jax.vjp(evaluate, given)
        return y, pull(dy)[0]

    dy = case.like(Outputs(given.at.x, given.at.mean, given.at.var)).y
    y, gradients = both(given, dy)
    v = oracle_of(case).inference(given.at)
    v = v + wide(given.residual) if adds else v
    expected, slope = ORACLES[activation](v)
    assert_close(y, expected)

    dv, (x, mean, var, gamma, _) = wide(dy) * slope, map(wide, given.at)
    inv = 1 / np.sqrt(var + EPSILON)
    total = partial(np.sum, axis=complement(-1, v.ndim))
    of_unit = total(dv * (x - mean) * inv)
    want = Primals(
        dv * gamma * inv,
        -total(dv) * gamma * inv,
        -0.5 * gamma * of_unit * inv**2,
        of_unit,
        total(dv),
    )
    for got, expected in zip(gradients.at, want, strict=True):
        assert_close(got, expected, 1e-4)
    if adds:
        assert_close(gradients.residual, dv, 1e-4)


@pytest.mark.sampled
@with_and_without
@every_activation
def test_forward_mode_and_second_order(activation: str, adds: bool) -> None:
    """The derivative along a direction matches the oracle, as do Hessian products in three nestings."""
    given, along = arguments(IMAGES), Arguments(IMAGES.tangents(), IMAGES.tangents().x[::-1])
    if not adds:
        given, along = (a._replace(residual=None) for a in (given, along))
    cts = IMAGES.like(Outputs(given.at.x, given.at.mean, given.at.var))

    def f(given: Arguments) -> jax.Array:
        y, stats = train(IMAGES, activation, *given)
        return (y * cts.y).sum() + (stats.mean * cts.mean).sum() + (stats.var * cts.var).sum()

    def paired(given: Arguments) -> jax.Array:
        pairs = zip(jax.tree.leaves(jax.grad(f)(given)), jax.tree.leaves(along), strict=True)
        return sum(jnp.vdot(g, a) for g, a in pairs)  # type: ignore[return-value]

    @jax.jit
    def derivatives(given: Arguments, along: Arguments) -> Any:
        slope = lambda at: jax.jvp(f, (at,), (along,))[1]  # noqa: E731
        hessian = jax.jvp(jax.grad(f), (given,), (along,))[1]
        return slope(given), (hessian, jax.grad(paired)(given), jax.grad(slope)(given))

    slope, hessians = derivatives(given, along)
    pairs = zip(
        jax.tree.leaves(gradient(IMAGES, activation, given, cts)),
        jax.tree.leaves(along),
        strict=True,
    )
    terms = [g * wide(a) for g, a in pairs]
    size = sum(np.abs(t).sum() for t in terms)
    assert abs(float(slope) - sum(t.sum() for t in terms)) < 1e-5 * size
    want = hessian_times(IMAGES, activation, given, cts, along)
    for hessian in hessians:
        got, expected = jax.tree.leaves(hessian), jax.tree.leaves(want)
        largest = max(np.abs(e).max() for e in expected)
        for g, e in zip(got, expected, strict=True):
            assert g.shape == e.shape
            tolerance = SECOND.get(activation, 1e-4)
            np.testing.assert_allclose(g, e, rtol=0, atol=tolerance * largest)


def loss(activation: str | None, at: Primals, residual: Any, dy: Any) -> jax.Array:
    """A scalar that depends on y and the statistics."""
    y, stats = train(IMAGES, activation, at, residual)
    return (y * dy).sum() + (stats.mean * stats.var).sum()


@pytest.mark.sampled
@with_and_without
@every_activation
def test_vmap_of_grad(activation: str, adds: bool) -> None:
    """Gradients vmapped over batches match the gradients of each batch."""
    one = arguments(IMAGES)
    one = one if adds else one._replace(residual=None)
    two = jax.tree.map(lambda a: a[::-1] * np.float32(1.5), one)
    both = jax.tree.map(lambda *a: np.stack(a), one, two)
    dy = np.float32(one.at.x > 2) + one.at.x
    grad = jax.grad(lambda given: loss(activation, given.at, given.residual, dy))
    together = jax.jit(jax.vmap(grad))(both)
    for i, given in enumerate((one, two)):
        for got, want in zip(
            jax.tree.leaves(together), jax.tree.leaves(jax.jit(grad)(given)), strict=True
        ):
            assert_close(got[i], np.float64(want), 1e-5)


@pytest.mark.sampled
@with_and_without
@every_activation
def test_eager(activation: str, adds: bool) -> None:
    """Without jit, the value, statistics and gradients are the same."""
    given = arguments(IMAGES)
    given = given if adds else given._replace(residual=None)

    def both(given: Arguments) -> Any:
        dy = jnp.asarray(given.at.x)
        grad = jax.grad(lambda given: loss(activation, given.at, given.residual, dy))(given)
        return train(IMAGES, activation, *given), grad

    eager, jitted = both(jax.tree.map(jnp.asarray, given)), jax.jit(both)(given)
    for got, want in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        assert_close(got, np.float64(want), 1e-5)


@pytest.mark.sampled
@with_and_without
@every_activation
def test_devices(activation: str, adds: bool) -> None:
    """Eight devices give the results of one, with shard_map and an axis name or with jit over a mesh."""
    case = Case("of devices", (16, 3, 4))
    given = arguments(case)
    given = given if adds else given._replace(residual=None)
    dy = draw(np.random.default_rng(4), case.shape, "float32")
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def of_both(given: Arguments, dy: Any, **more: Any) -> Any:
        f = partial(train, case, activation, **more)
        y, pull, stats = jax.vjp(lambda given: f(*given), given, has_aux=True)
        return y, stats, pull(dy)[0]

    split = Arguments(Primals(P("d"), P(), P(), P(), P()), P("d") if adds else None)
    mapped = jax.shard_map(
        partial(of_both, axis_name="d"),
        mesh=mesh,
        in_specs=(split, P("d")),
        out_specs=(P("d"), P(), split),
    )
    placed = jax.tree.map(
        lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)),
        (given, dy),
        (split, P("d")),
    )
    one = jax.tree.leaves(jax.jit(of_both)(given, dy))
    for several in (jax.jit(mapped)(given, dy), jax.jit(of_both)(*placed)):
        for got, want in zip(jax.tree.leaves(several), one, strict=True):
            assert_close(np.asarray(got), np.float64(want))


@pytest.mark.sampled
@with_and_without
@every_activation
def test_is_the_norm_and_then_the_activation(activation: str, adds: bool) -> None:
    """Value and gradients match ``act(batch_norm(x) + residual)`` up to float32 rounding."""
    given = arguments(IMAGES)
    given = given if adds else given._replace(residual=None)

    def in_steps(given: Arguments) -> Any:
        y, stats = train(IMAGES, None, given.at, None)
        return OF_JAX[activation](y if given.residual is None else y + given.residual), stats

    def both(f: Any) -> Any:
        out, pull = jax.vjp(f, given)
        return out, pull(out)[0]

    ours, steps = (
        jax.jit(both, static_argnums=0)(f)
        for f in (lambda given: train(IMAGES, activation, *given), in_steps)
    )
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(steps), strict=True):
        assert_close(got, np.float64(want), FIRST.get(activation, 1e-5))


@pytest.mark.sampled
@with_and_without
@every_activation
def test_far_from_zero(activation: str, adds: bool) -> None:
    """With mean 1e4 and standard deviation 1, results are as exact as the float32 mean allows."""
    case = Case("far", (32, 6, 3))
    given = arguments(case)
    given = given if adds else given._replace(residual=None)
    x = np.float32(1e4) + draw(np.random.default_rng(8), case.shape, "float32")
    given = given._replace(at=given.at._replace(x=x))
    zeros = np.zeros_like(given.at.mean)
    cts = Outputs(draw(np.random.default_rng(9), case.shape, "float32"), zeros, zeros)
    y, pull = jax.vjp(lambda given: train(case, activation, *given)[0], given)
    assert_close(y, ORACLES[activation](before(case, given))[0], 1e-3)
    want = gradient(case, activation, given, cts)
    got = pull(jnp.asarray(cts.y))[0]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if np.abs(b).any():  # zero for the running statistics
            assert_close(a, b, 2e-3)


@pytest.mark.sampled
@with_and_without
@every_activation
def test_nan_under_the_mask_stays_there(activation: str, adds: bool) -> None:
    """NaN in masked x affects nothing else; NaN in a masked residual affects only its own output.

    For curved activations, the slope at a NaN residual is NaN, so gradients are checked only for the
    others.
    """
    case = Case("padded", (6, 5, 3), mask_name="full")
    clean, counts = arguments(case), case.mask()
    clean = clean._replace(at=clean.at._replace(x=np.nan_to_num(clean.at.x)))
    spoilt = jax.tree.map(np.copy, clean)
    spoilt.at.x[~counts] = np.nan
    if adds:
        spoilt.residual[~counts] = np.nan
    else:
        clean, spoilt = (a._replace(residual=None) for a in (clean, spoilt))
    dy = np.where(counts, clean.at.x, np.float32(0))  # zero for padding

    @jax.jit
    def both(given: Arguments) -> Any:
        y, pull, stats = jax.vjp(lambda g: train(case, activation, *g), given, has_aux=True)
        (gradients,) = pull(jnp.asarray(dy))
        each = (y, gradients.at.x, gradients.residual)
        each = jax.tree.map(lambda a: jnp.where(counts, a, 0), each)
        return each[0], stats, each[1:], gradients.at[3:]

    got, want = both(spoilt), both(clean)
    assert jnp.isfinite(got[0]).all()
    assert_equal(got[:2], want[:2])
    if not adds or activation in ("relu", "leaky_relu"):
        assert_equal(got[2:], want[2:])


@pytest.mark.sampled
@with_and_without
@every_activation
def test_batch_of_one(activation: str, adds: bool) -> None:
    """In a batch of one, the output depends only on bias and residual, and the gradient of x is zero."""
    case = Case("one", (1, 4))
    given = arguments(case)
    given = given if adds else given._replace(residual=None)
    v = wide(given.at.bias)[None] + (wide(given.residual) if adds else 0)
    y, pull = jax.vjp(lambda given: train(case, activation, *given)[0], given)
    got = pull(jnp.ones_like(y))[0].at
    value, slope = ORACLES[activation](v)
    assert_close(y, value)
    assert_close(got.bias, slope[0])
    assert not got.x.any() and not got.scale.any()


AT_ZERO = [(a, adds) for a in ACTIVATIONS for adds in (False, True)]


@pytest.mark.parametrize(("activation", "adds"), AT_ZERO)
def test_at_zero(activation: str, adds: bool) -> None:
    """Where the norm and the residual cancel, the derivative is that of `jax.nn` at 0."""
    case = Case("one", (1, 4))
    at = case.primals()._replace(bias=np.zeros(4, np.float32))
    residual = np.zeros((1, 4), np.float32) if adds else None
    f = lambda bias: train(case, activation, at._replace(bias=bias), residual)[0].sum()  # noqa: E731
    assert_close(jax.grad(f)(at.bias), np.full(4, jax.grad(OF_JAX[activation])(0.0)))


@pytest.mark.parametrize(
    ("activation", "value"),
    [
        ("relu", np.inf),
        ("relu", -np.inf),
        ("leaky_relu", np.inf),
        ("leaky_relu", -np.inf),
    ],
)
def test_infinite_residual(activation: str, value: float) -> None:
    """An infinite residual gives the same output as in `jax.nn`: relu maps negative infinity to 0."""
    given = arguments(IMAGES)
    given.residual[0, 0, 0] = value
    y, _ = train(IMAGES, activation, *given)
    np.testing.assert_array_equal(y[0, 0, 0], OF_JAX[activation](jnp.full(3, value)))


def test_residual_of_a_complex_norm() -> None:
    """Without an activation, complex values can have a residual too."""
    case = Case("complex", (17, 3), dtype="complex64", param_dtype="complex64")
    given = arguments(case)
    y, _ = train(case, None, *given)
    assert_close(y, oracle_of(case).value(given.at).y + wide(given.residual))


@pytest.mark.sampled
@with_and_without
@every_activation
def test_modules(activation: str, adds: bool) -> None:
    """Linen and NNX match the function bit for bit, in training and evaluation."""
    x, residual = (draw(np.random.default_rng(i), (6, 5, 8), "float32", 1.0) for i in range(2))
    call: dict[str, Any] = {"residual": residual} if adds else {}
    stats, affine = jn.init_running_stats(8), (ramp(jax.random.key(0), (8,)),) * 2
    fields: dict[str, Any] = {"scale_init": ramp, "bias_init": ramp, "activation": activation}

    def of_function(x: Any, call: Any) -> Any:
        y, after = jn.batch_norm(x, stats, *affine, activation=activation, **call)
        return y, after, jn.batch_norm_inference(x, after, *affine, activation=activation, **call)

    def of_linen(x: Any, call: Any) -> Any:
        layer: nn.Module = jnl.BatchNorm(**fields)
        variables = layer.init(jax.random.key(0), x, use_running_average=False)
        y, after = layer.apply(
            variables, x, use_running_average=False, mutable=["batch_stats"], **call
        )
        after = {**variables, **after}
        moved = after["batch_stats"]
        evaluated = layer.apply(after, x, use_running_average=True, **call)
        return y, jn.RunningStats(moved["mean"], moved["var"]), evaluated

    def of_nnx(x: Any, call: Any) -> Any:
        layer: Any = jnx.BatchNorm(8, rngs=nnx.Rngs(0), **fields)
        y = layer(x, **call)
        moved = jn.RunningStats(layer.mean[...], layer.var[...])
        return y, moved, layer(x, use_running_average=True, **call)

    want = compiled(of_function, x, call)
    for system in (of_linen, of_nnx):
        assert_equal(compiled(system, x, call), want)
