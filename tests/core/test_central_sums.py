"""The sums of every platform, all run here, give correct moments."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxnorm.core import _central_sums, _exact_sums
from jaxnorm.core._pool import Blocks, Moments, moments_from_sums
from jaxnorm.core._shift import count
from tests import oracle

LOWERINGS: dict[str, Callable[..., Any]] = {
    "default": _central_sums._about_a_few,
    "gpu": _central_sums._on_gpu,
    "tpu": partial(_central_sums._on_tpu, devices=1),
}
SHAPE = (4, 6, 5, 8)


def moments_by(
    platform: str,
    narrow: Any,
    axes: tuple[int, ...],
    *,
    mask: Any = None,
    guess: Any = None,
    blocks: Blocks | None = None,
) -> Moments:
    """Moments computed from the sums that a platform takes."""
    given = (True, True, mask is not None, guess is not None)
    others = [jnp.asarray(a) for a in (mask, guess) if a is not None]

    @jax.jit
    def taken(narrow: jax.Array, *others: jax.Array) -> Moments:
        x = narrow.astype(jnp.float32)
        shift, total, squares = LOWERINGS[platform](
            x, narrow, *others, given=given, axes=axes, blocks=blocks, differentiated=False
        )
        return moments_from_sums(
            shift, total, squares, count(x, others[0] if given[2] else None, axes, blocks)
        )

    return taken(jnp.asarray(narrow), *others)


def drawn(dtype: Any, mean: float = 3.0, shape: tuple[int, ...] = SHAPE) -> jax.Array:
    """Values with standard deviation 1 and a different mean for each feature."""
    rng = np.random.default_rng(0)
    means = mean * (1 + np.arange(shape[-1]) / shape[-1])
    return jnp.asarray(rng.normal(size=shape) + means, dtype)


def assert_moments(got: Moments, want: oracle.Moments, tolerance: float = 1e-5) -> None:
    """Compares means relative to the standard deviation, and variances relative to themselves."""
    assert np.all(np.abs(got.mean - want.mean) <= tolerance * np.sqrt(want.var) + 1e-6 * want.mean)
    np.testing.assert_allclose(got.var, want.var, rtol=tolerance)


@pytest.mark.sampled
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("axes", [(3,), (0, 1, 2), (1, 2), ()], ids=str)
@pytest.mark.parametrize("platform", LOWERINGS)
def test_moments(platform: str, axes: tuple[int, ...], dtype: str, masked: bool) -> None:
    """Moments match the oracle whatever the shift, and ignore masked elements, even NaN."""
    x = drawn(dtype)
    mask = np.random.default_rng(1).random((4, 6, 5, 1)) < 0.7 if masked else None
    if mask is not None:
        x = jnp.where(mask, x, jnp.nan)
    got = moments_by(platform, x, axes, mask=mask)
    want = oracle.moments(np.where(True if mask is None else mask, x, 0), axes, mask)
    assert_moments(got, want)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("platform", LOWERINGS)
def test_moments_of_blocks(platform: str, masked: bool) -> None:
    """Neighbors share statistics, even if their means differ or one of them is fully masked."""
    x, blocks = drawn("float32", mean=50.0), Blocks(3, 2)
    mask = None
    if masked:
        mask = np.random.default_rng(1).random(SHAPE) < 0.7
        mask[:, :, :, 2] = False
        mask[0] = False
    got = moments_by(platform, x, (1, 2), mask=mask, blocks=blocks)
    split = (4, 6, 5, 2, 4)
    want = oracle.moments(
        x.reshape(split), (1, 2, 4), None if mask is None else mask.reshape(split)
    )
    assert_moments(got, oracle.Moments(*(np.squeeze(a, 4) for a in want)))


@pytest.mark.parametrize("platform", LOWERINGS)
def test_moments_of_blocks_of_close_neighbours(platform: str) -> None:
    """Far from zero, the rounding error of a neighbor's mean is corrected."""
    rng = np.random.default_rng(0)
    x = np.asarray(rng.normal(size=SHAPE) + 1e4 + np.arange(SHAPE[-1]), np.float32)
    got = moments_by(platform, x, (1, 2), blocks=Blocks(3, 2))
    want = oracle.moments(x.reshape(4, 6, 5, 2, 4), (1, 2, 4))
    np.testing.assert_allclose(got.var, np.squeeze(want.var, 4), rtol=2e-5)


GUESSES = {
    "near": 1.0,
    "far": 0.0,
    "nan": np.nan,
    "infinite": np.inf,
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("dtype", "mean"), [("float32", 1e4), ("bfloat16", 100), ("float16", 100)])
@pytest.mark.parametrize("guess", GUESSES)
def test_moments_about_a_guess(guess: str, dtype: str, mean: float, masked: bool) -> None:
    """With a mean of many standard deviations, a guess that is far from it costs no precision."""
    x = drawn(dtype, mean, (40, 12, 10, 8))  # of float32 and float16, too many for exact sums
    mask = np.random.default_rng(1).random((40, 12, 10, 1)) < 0.7 if masked else None
    means = GUESSES[guess] * np.mean(np.asarray(x, np.float64), (0, 1, 2), keepdims=True)
    got = moments_by("tpu", x, (0, 1, 2), mask=mask, guess=means.astype(np.float32))
    assert_moments(got, oracle.moments(x, (0, 1, 2), mask), 2e-3)


@pytest.mark.sampled
@pytest.mark.parametrize("guess", [None, 0.0, 7.0])
@pytest.mark.parametrize("platform", LOWERINGS)
@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, -3e4])
def test_variance_of_a_constant(platform: str, guess: float | None, value: float) -> None:
    """The variance of a constant is zero, up to the rounding of the mean."""
    x = jnp.full((999, 3), value)
    got = moments_by(platform, x, (0,), guess=None if guess is None else jnp.full((1, 3), guess))
    assert np.all(got.var <= (2e-7 * value) ** 2)


@pytest.mark.parametrize(
    ("dtype", "elements", "branches"),
    [
        ("float32", 4096, False),
        ("float32", 4097, True),
        ("bfloat16", 65536, False),
        ("bfloat16", 65537, True),
        ("float16", 4096, False),
        ("float16", 4097, True),
    ],
)
def test_no_branch_where_sums_are_exact(dtype: str, elements: int, branches: bool) -> None:
    """Exact sums need no guess."""
    jaxpr = on_tpu((elements, 2), dtype)
    assert ("cond" in {eqn.primitive.name for eqn in jaxpr.eqns}) == branches


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mebibytes", "devices", "copied"),
    [(64, 1, True), (65, 1, False), (128, 2, True), (129, 2, False)],
)
def test_the_branch_reads_a_copy_of_a_small_x(
    dtype: str, mebibytes: int, devices: int, copied: bool
) -> None:
    """XLA can keep an x that fits in a chip's own memory there, as long as no branch reads it."""
    rows = mebibytes * 2**20 // (128 * jnp.dtype(dtype).itemsize)
    jaxpr = on_tpu((rows, 128), dtype, devices)
    (branch,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond")
    read = [v for v in branch.invars if getattr(v.aval, "shape", ()) == (rows, 128)]
    assert [v.aval.dtype for v in read] == [dtype]
    assert (read[0] not in jaxpr.jaxpr.invars) == copied


def on_tpu(shape: tuple[int, int], dtype: str, devices: int = 1) -> Any:
    """The jaxpr of a TPU's sums over the rows of an array, given a guess."""
    params = {"given": (True, True, False, True), "axes": (0,), "blocks": None}
    taken = partial(_central_sums._on_tpu, differentiated=False, devices=devices, **params)
    x, narrow = (jax.ShapeDtypeStruct(shape, d) for d in ("float32", dtype))
    return jax.make_jaxpr(taken)(x, narrow, jax.ShapeDtypeStruct((1, shape[1]), "float32"))


def test_a_guess_of_a_constant_need_not_be_exact() -> None:
    """Sums about a running mean that is some roundings off are good enough and are not repeated."""
    elements = _exact_sums.most_elements(jnp.dtype("float32")) + 1  # too many for exact sums
    x, guess = jnp.full((elements, 2), 7.0), jnp.full((1, 2), 7.0 * (1 + 2.0**-20))
    operands = {"given": (True, True, False, True), "axes": (0,), "blocks": None}
    shift, total, squares = LOWERINGS["tpu"](x, x, guess, differentiated=False, **operands)
    np.testing.assert_array_equal(shift, guess)
    m = moments_from_sums(shift, total, squares, count(x, None, (0,)))
    assert np.all(m.var <= 1e-12)
    np.testing.assert_allclose(m.mean, 7, rtol=1e-7)


@pytest.mark.sampled
@pytest.mark.parametrize("elements", [16, 100, 4096])
@pytest.mark.parametrize(
    ("dtype", "mean", "tolerance"),
    [
        ("float32", 0.0, 1e-6),
        ("float32", 1e2, 1e-6),
        ("float32", 1e4, 1e-5),
        ("bfloat16", 0.0, 1e-6),
        ("bfloat16", 100.0, 1e-6),
        ("float16", 0.0, 1e-6),
        ("float16", 100.0, 1e-6),
    ],
)
def test_exact_sums(dtype: str, mean: float, tolerance: float, elements: int) -> None:
    """From plain sums, the variance keeps the digits that a difference of rounded sums would lose."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, elements)) + mean, dtype)
    assert elements <= _exact_sums.most_elements(jnp.dtype(dtype))
    got = moments_by("tpu", x, (1,))
    want = oracle.moments(x, 1)
    np.testing.assert_allclose(got.var, want.var, rtol=tolerance)
    if dtype == "float32" and mean > 0:
        plain = np.square(x).mean(1) - np.square(np.mean(x, 1))
        off = np.abs(plain / np.squeeze(want.var) - 1).max()
        assert off > 10 * tolerance, "plain sums would do here"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_exact_sums_of_one_element(dtype: str) -> None:
    """Where a mask leaves one element or none, that is the mean, or 0 is, and nothing is left to sum."""
    x, mask = jnp.asarray([[3.1, 7.0], [5.3, 2.0]], dtype), jnp.asarray([[0, 1], [0, 0]], bool)
    wide = x.astype(jnp.float32)
    sums = _exact_sums.exact_sums(
        wide, x.dtype, mask, mask.sum(1, keepdims=True).astype("float32"), (1,)
    )
    np.testing.assert_array_equal(jnp.squeeze(jnp.stack(sums)), [[7.0, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_derivative_does_not_depend_on_the_platform(dtype: str) -> None:
    """Each platform has its own program, and the derivative uses the same shift as the value."""

    def both(x: Any) -> Any:
        def sums_of(x: jax.Array) -> Any:
            return _central_sums.central_sums(x.astype(jnp.float32), (0,), narrow=x)[1:]

        sums, pull = jax.vjp(sums_of, x)
        return sums, pull(sums)

    exported = export.export(jax.jit(both), platforms=["cpu", "cuda", "tpu"])(
        jax.ShapeDtypeStruct((64, 8), dtype)
    )
    x = drawn(dtype, shape=(64, 8))
    (total, squares), (got,) = exported.call(x)
    wide = np.asarray(x, np.float64)
    shift = wide.mean(0, keepdims=True) - total / 64
    rtol = 1e-3 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(
        got.astype("float32"), total + 2 * (wide - shift) * squares, rtol=rtol, atol=rtol
    )


@pytest.mark.parametrize("blocks", [None, Blocks(2, 4)], ids=["", "blocks"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "ratio"), [("float32", 1e4), ("bfloat16", 3.0), ("bfloat16", 256.0)]
)
@pytest.mark.parametrize("on_tpu", [False, True])
def test_the_derivative(
    monkeypatch: pytest.MonkeyPatch,
    on_tpu: bool,
    dtype: str,
    ratio: float,
    masked: bool,
    blocks: Blocks | None,
) -> None:
    """From bfloat16, a TPU's keeps far more than eight bits of it at any mean/std that bfloat16 can hold."""
    answer = jnp.asarray(on_tpu)
    monkeypatch.setattr(_central_sums, "compiled_for", lambda platform: answer)
    rng = np.random.default_rng(0)
    shape, axes = (64, 5, 8), (0, 1)
    x = jnp.asarray(ratio + rng.normal(size=shape), dtype)
    mask = jnp.asarray(rng.random(shape) < 0.7) if masked else None
    narrow = x if mask is None else jnp.where(mask, x, jnp.nan)

    def measured(wide: jax.Array) -> tuple[jax.Array, jax.Array]:
        sums = _central_sums.central_sums(wide, axes, narrow=narrow, mask=mask, blocks=blocks)
        m = moments_from_sums(*sums, count(wide, mask, axes, blocks))
        return m.mean, m.var

    def exact(wide: Any) -> tuple[Any, Any]:
        rows = wide if blocks is None else wide.reshape(*shape[:2], 4, 2)
        counted = None if mask is None else mask.reshape(rows.shape)
        over = axes if blocks is None else (*axes, 3)
        mean = rows.mean(over, keepdims=True, where=counted)
        var = jnp.square(rows - mean).mean(over, keepdims=True, where=counted)
        return mean.reshape(1, 1, -1), var.reshape(1, 1, -1)

    wide = narrow.astype(jnp.float32)
    cotangents = [jnp.asarray(rng.normal(size=v.shape), v.dtype) for v in measured(wide)]
    dx = jnp.asarray(rng.normal(size=shape), jnp.float32)
    _, along = jax.jvp(measured, (wide,), (dx,))
    (got,) = jax.vjp(measured, wide)[1](tuple(cotangents))
    with jax.enable_x64():
        at = jnp.asarray(np.where(narrow == narrow, narrow, 0), "float64")
        _, want_along = jax.jvp(exact, (at,), (jnp.asarray(dx, "float64"),))
        (want,) = jax.vjp(exact, at)[1](tuple(jnp.asarray(c, "float64") for c in cotangents))
        want, *want_along = (np.asarray(a) for a in (want, *want_along))
    spread = np.sqrt(np.mean(np.square(want)))
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * spread)
    for ours, theirs in zip(along, want_along, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mapped", [(0, 0, 0), (None, 0, None), (None, None, 0), (0, None, 0)], ids=str
)
def test_vmap(mapped: tuple[int | None, ...]) -> None:
    """Values, mask and guess can each be mapped or not."""
    x, mask = drawn("float32", shape=(3, 7, 8)), np.random.default_rng(1).random((3, 7, 8)) < 0.7
    operands = x, jnp.asarray(mask), jnp.zeros((3, 1, 8))
    given = [a if d == 0 else a[0] for a, d in zip(operands, mapped, strict=True)]

    def taken(x: jax.Array, mask: jax.Array, guess: jax.Array) -> Moments:
        shift, total, squares = _central_sums.central_sums(x, (0,), mask=mask, guess=guess)
        return moments_from_sums(shift, total, squares, count(x, mask, (0,)))

    got = jax.jit(jax.vmap(taken, mapped))(*given)
    for i, mean in enumerate(got.mean):
        x_i, mask_i, _ = (a[i] if d == 0 else a for a, d in zip(given, mapped, strict=True))
        np.testing.assert_allclose(mean, oracle.moments(x_i, 0, mask_i).mean, rtol=1e-5)


def test_another_guess_makes_no_other_sums() -> None:
    """With several guesses for one x, as in an ensemble, sums are taken once and x is not repeated."""

    def taken(guess: jax.Array) -> Any:
        return _central_sums.central_sums(x, (0,), guess=guess)

    x = drawn("float32", shape=(7, 8))
    text = str(jax.make_jaxpr(jax.vmap(taken))(jnp.zeros((3, 1, 8))))
    assert "norm_central_sums" in text
    assert "3,7,8" not in text
