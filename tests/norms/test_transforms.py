"""Every transform of JAX on `batch_norm`, each against the oracle or the plain function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import EPSILON, MOMENTUM, Case, draw
from tests.oracle import BatchNorm, Outputs, Primals, assert_close

PLAIN = Case("plain", (6, 5, 2))
MASKED = Case("masked", (6, 5, 2), mask_name="full")
WIDE = Case("wide", (3, 12, 11, 2), mask_name="examples")  # moments of single examples are pooled
CASES = (PLAIN, MASKED, WIDE)
both = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def train(at: Any, mask: Any = None) -> Outputs:
    """`batch_norm` with the shared momentum and epsilon."""
    mask = None if mask is None else jnp.asarray(mask)
    y, stats = jn.batch_norm(
        at[0],
        jn.RunningStats(at[1], at[2]),
        *at[3:],
        momentum=MOMENTUM,
        epsilon=EPSILON,
        mask=mask,
    )
    return Outputs(y, stats.mean, stats.var)


def oracle_of(case: Case) -> BatchNorm:
    """The same in float64."""
    return BatchNorm(-1, MOMENTUM, EPSILON, mask=case.mask())


def curved(x: jax.Array, case: Case) -> jax.Array:
    """A scalar of y and the running statistics with nonzero second derivatives."""
    outputs = train(case.primals()._replace(x=x), case.mask())
    weights = case.like(outputs)
    return sum(((w + o) * o**2).sum() for w, o in zip(weights, outputs, strict=True))  # type: ignore[return-value]


def curved_gradient(x: Any, case: Case) -> np.ndarray:
    """The gradient of `curved` in float64."""
    at, norm = case.primals()._replace(x=x), oracle_of(case)
    value = norm.value(at)
    weights = case.like(jax.eval_shape(lambda: train(case.primals())))
    slopes = (2 * w * o + 3 * o**2 for w, o in zip(weights, value, strict=True))
    return norm.gradient(at, Outputs(*slopes)).x


def curved_hessian_times(x: Any, v: Any, case: Case) -> np.ndarray:
    """The second derivative of `curved` along ``v``, by central differences in float64."""
    h = 1e-6
    x, v = np.float64(x), np.float64(v)
    return (curved_gradient(x + h * v, case) - curved_gradient(x - h * v, case)) / (2 * h)


FIRST_ORDER = {
    "grad": jax.grad,
    "jit_grad": lambda f: jax.jit(jax.grad(f)),
    "grad_jit": lambda f: jax.grad(jax.jit(f)),
    "jacrev": jax.jacrev,
    "jacfwd": jax.jacfwd,
    "linearize_transposed": lambda f: (
        lambda x: jax.linear_transpose(jax.linearize(f, x)[1], x)(jnp.float32(1))[0]
    ),
    "linearize": lambda f: lambda x: jax.vmap(jax.linearize(f, x)[1])(_basis(x)).reshape(x.shape),
    "remat": lambda f: jax.grad(jax.checkpoint(f)),
    "remat_twice": lambda f: jax.grad(jax.checkpoint(jax.checkpoint(f))),
    "remat_dots": lambda f: jax.grad(
        jax.checkpoint(f, policy=jax.checkpoint_policies.checkpoint_dots)
    ),
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (c, jax.grad(f)(c)), x, None, 2)[1][1],
    "grad_of_scan": lambda f: jax.grad(
        lambda x: jax.lax.scan(lambda c, _: (c, f(c)), x, None, 2)[1][0]
    ),
    "cond": lambda f: jax.grad(lambda x: jax.lax.cond(x.sum() < 1e9, f, lambda x: x.sum(), x)),
    "vmap_of_grad": lambda f: lambda x: jax.vmap(jax.grad(f))(jnp.stack([x + 1, x]))[1],
    "grad_of_vmap": lambda f: (
        lambda x: jax.grad(lambda z: jax.vmap(f)(z).sum())(jnp.stack([x + 1, x]))[1]
    ),
}
SECOND_ORDER = {
    "jvp_of_grad": lambda f, x, v: jax.jvp(jax.grad(f), (x,), (v,))[1],
    "grad_of_grad": lambda f, x, v: jax.grad(lambda z: (jax.grad(f)(z) * v).sum())(x),
    "grad_of_jvp": lambda f, x, v: jax.grad(lambda z: jax.jvp(f, (z,), (v,))[1])(x),
    "jvp_of_jvp": lambda f, x, v: jax.vmap(
        lambda e: jax.jvp(lambda z: jax.jvp(f, (z,), (v,))[1], (x,), (e,))[1]
    )(_basis(x)).reshape(x.shape),
    "grad_of_remat_grad": lambda f, x, v: jax.grad(
        jax.checkpoint(lambda z: (jax.grad(f)(z) * v).sum())
    )(x),
    "vmap_of_jvp_of_grad": lambda f, x, v: jax.vmap(lambda w: jax.jvp(jax.grad(f), (x,), (w,))[1])(
        jnp.stack([0 * v, v])
    )[1],
}


def _basis(x: jax.Array) -> jax.Array:
    return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)


def over(names: Any, briefly: tuple[str, ...]) -> Any:
    """Parametrizes one case with all transforms and the others with a few, since each is a compilation."""
    pairs = [(n, c) for n in names for c in CASES if c is WIDE or n in briefly]
    return pytest.mark.parametrize(("name", "case"), pairs, ids=lambda v: getattr(v, "name", v))


@over(FIRST_ORDER, ("jit_grad", "jacfwd"))
def test_first_order(name: str, case: Case) -> None:
    """Every way to take a first derivative matches the oracle."""
    x = jnp.asarray(case.primals().x)
    got = jax.jit(FIRST_ORDER[name](lambda x: curved(x, case)))(x)
    assert_close(got, curved_gradient(x, case), 1e-4)


@pytest.mark.sampled
@over(SECOND_ORDER, ("jvp_of_grad", "grad_of_grad"))
def test_second_order(name: str, case: Case) -> None:
    """Hessian-vector products in every nesting match differences of the oracle's gradient."""
    x = jnp.asarray(case.primals().x)
    v = jnp.asarray(draw(case.rng(), case.shape, "float32"))
    got = jax.jit(lambda x, v: SECOND_ORDER[name](lambda z: curved(z, case), x, v))(x, v)
    assert_close(got, curved_hessian_times(x, v, case), 1e-3)


def test_hessian_is_symmetric_and_right() -> None:
    """The result of jax.hessian is symmetric and matches the oracle row by row."""
    case = Case("small", (4, 2), mask_name="full")
    x = jnp.asarray(case.primals().x)
    got = jax.jit(jax.hessian(lambda x: curved(x, case)))(x).reshape(x.size, x.size)
    want = np.stack([curved_hessian_times(x, e, case).ravel() for e in _basis(x)])
    assert_close(got, want, 1e-3)
    np.testing.assert_allclose(got, got.T, rtol=1e-3, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("case", [MASKED], ids=lambda c: c.name)
def test_eager_is_jitted(case: Case) -> None:
    """Results are the same without jit."""
    at, mask = case.primals(), case.mask()
    for got, want in zip(train(at, mask), oracle_of(case).value(at), strict=True):
        assert_close(got, want)
    dx = jax.grad(lambda x: curved(x, case))(jnp.asarray(at.x))
    assert_close(dx, curved_gradient(at.x, case), 1e-4)


def stacked(case: Case, copies: int) -> Primals:
    """Primals of several models, stacked along a leading axis."""
    rng = case.rng()
    at = case.primals()
    noise = Primals(*(draw(rng, (copies, *a.shape), "float32", 0.0, 0.1) for a in at))
    return Primals(*(a[None] + abs(n) for a, n in zip(at, noise, strict=True)))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: jn.batch_norm(x, jn.init_running_stats(4), mask=x[..., :1] > 0)[0],
        lambda x: jn.layer_norm(x, jnp.ones(4)),
        lambda x: jax.vmap(jn.rms_norm)(x),
        lambda x: jn.group_norm(x, num_groups=2),
    ],
    ids=["batch", "layer", "rms", "group"],
)
def test_without_jit(norm: Any) -> None:
    """With jit disabled everywhere, values and gradients are the same."""

    def gradient(x: Any) -> Any:
        y, pull = jax.vjp(norm, x)
        return y, *pull(jnp.cos(y))

    x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (3, 5, 4)), jnp.float32)
    with jax.disable_jit():
        found = gradient(x)
    for got, want in zip(found, jax.jit(gradient)(x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("shared", ["nothing", "params", "stats", "mask_only"])
@both
def test_vmap_of_models(case: Case, shared: str) -> None:
    """Under vmap each model keeps its own statistics and gradients, whichever arguments are shared."""
    many, mask = stacked(case, 3), case.mask()
    axes = Primals(0, 0, 0, 0, 0)
    if shared == "params":
        axes, many = (
            axes._replace(scale=None, bias=None),
            many._replace(scale=many[3][0], bias=many[4][0]),
        )
    if shared == "stats":
        axes, many = (
            axes._replace(mean=None, var=None),
            many._replace(mean=many[1][0], var=many[2][0]),
        )
    if shared == "mask_only" and mask is not None:  # x is shared, masks differ
        axes, many = axes._replace(x=None), many._replace(x=many[0][0])
    masks = mask if mask is None else np.stack([mask, ~mask, mask | True])
    ct = Outputs(*(draw(case.rng(), (3, *s), "float32") for s in (case.shape, (2,), (2,))))

    def one(at: Primals, mask: Any, ct: Outputs) -> tuple[Outputs, Primals]:
        outputs, pull = jax.vjp(lambda at: train(at, mask), at)
        return outputs, pull(ct)[0]

    outputs, gradients = jax.jit(jax.vmap(one, in_axes=(axes, 0, 0)))(many, masks, ct)
    for i in range(3):
        at = Primals(*(a if axis is None else a[i] for a, axis in zip(many, axes, strict=True)))
        norm = BatchNorm(-1, MOMENTUM, EPSILON, mask=None if masks is None else masks[i])
        for got, want in zip(outputs, norm.value(at), strict=True):
            assert_close(got[i], want)
        cotangent = Outputs(*(c[i] for c in ct))
        for got, want in zip(gradients, norm.gradient(at, cotangent), strict=True):
            assert_close(got[i], want, 5e-5)


def test_double_vmap() -> None:
    """With two vmaps, the inner one over the last axis, each of the 2 × 3 models has its own statistics."""
    rng = np.random.default_rng(0)
    x = draw(rng, (2, 6, 4, 3), "float32", 2.0, 3.0)  # models, rows, features, models
    at = Case("", (6, 4)).primals()
    f = jax.vmap(jax.vmap(lambda x: train(at._replace(x=x)), in_axes=-1, out_axes=-1))
    got = jax.jit(f)(x)
    dx = jax.jit(jax.grad(lambda x: (f(x).y ** 3).sum()))(x)
    for i, j in np.ndindex(2, 3):
        norm, one = BatchNorm(-1, MOMENTUM, EPSILON), at._replace(x=x[i, :, :, j])
        want = norm.value(one)
        for g, w in zip(got, want, strict=True):
            assert_close(g[i, ..., j], w)
        zero = np.zeros(4)
        assert_close(dx[i, ..., j], norm.gradient(one, Outputs(3 * want.y**2, zero, zero)).x, 1e-4)


@pytest.mark.parametrize("momentum", [MOMENTUM, None])
def test_scan_over_steps(momentum: float | None) -> None:
    """Training steps in a scan give the right outputs, final state and gradients."""
    rng = np.random.default_rng(0)
    xs = draw(rng, (4, 7, 2), "float32", 2.0, 3.0)
    at = Case("", (7, 2)).primals()
    start = jn.RunningStats(
        jnp.asarray(at.mean), jnp.asarray(at.var), jnp.int32(0) if momentum is None else None
    )

    def run(xs: Any) -> Any:
        def step(stats: jn.RunningStats, x: Any) -> Any:
            y, stats = jn.batch_norm(x, stats, momentum=momentum, epsilon=EPSILON)
            return stats, y

        return jax.lax.scan(step, start, xs)

    stats, ys = jax.jit(run)(xs)
    mean, var = at.mean, at.var
    for i, x in enumerate(xs):
        weight = i / (i + 1) if momentum is None else momentum
        here = Primals(x, mean, var, np.ones(2), np.zeros(2))
        y, mean, var = BatchNorm(-1, weight, EPSILON).value(here)
        assert_close(ys[i], y)
    assert_close(stats.mean, mean)
    assert_close(stats.var, var)
    if momentum is None:
        assert int(stats.count) == len(xs)
        assert_close(stats.mean, xs.astype(np.float64).mean((0, 1)))
    weights = (
        [0.25] * 4 if momentum is None else [(1 - momentum) * momentum ** (3 - i) for i in range(4)]
    )
    dx = jax.jit(jax.grad(lambda xs: run(xs)[0].mean.sum()))(xs)
    assert_close(dx, np.stack([np.full((7, 2), w / 7) for w in weights]))
