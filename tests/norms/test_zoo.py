"""Norms that Flax does not have, against float64: values, gradients entry by entry, masks, dtypes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.selecting import thorough_but
from tests.zoo import ZOO, mask_of, primals

MASKED = [name for name, zoo in ZOO.items() if zoo.takes_mask]
over_zoo = pytest.mark.parametrize("name", ZOO)
over_masked = pytest.mark.parametrize("name", MASKED)


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """A random cotangent."""
    return np.random.default_rng(11).normal(size=shape)


def results(name: str, dtype: Any = np.float32, **mask: Any) -> tuple[Any, Any]:
    """Our value, and our gradients for a random cotangent, in one program."""
    args = primals(name, dtype)

    @jax.jit
    def of(*args: Any) -> Any:
        y, back = jax.vjp(lambda *args: ZOO[name].ours(*args, **mask), *args)
        return y, back(jnp.asarray(cotangent(y.shape), y.dtype))

    return of(*args)


def gradient(f: Callable[..., Any], args: list[np.ndarray], i: int) -> np.ndarray:
    """The gradient of Σ cotangent · f for argument ``i``, entry by entry, by differences in float64."""
    found, h = np.zeros(args[i].shape), 1e-5
    for at in np.ndindex(args[i].shape):
        sides = []
        for sign in (1, -1):
            moved = [a.copy() for a in args]
            moved[i][at] += sign * h
            y = f(*moved)
            sides.append((y * cotangent(y.shape)).sum())
        found[at] = (sides[0] - sides[1]) / (2 * h)
    return found


@pytest.mark.every_case
@over_zoo
def test_value_and_gradients(name: str) -> None:
    """Values and gradients match the oracle to float32 precision."""
    y, grads = results(name)
    args = [np.asarray(a, float) for a in primals(name)]
    np.testing.assert_allclose(y, ZOO[name].oracle(*args), rtol=2e-5, atol=2e-5)
    for i, ours in enumerate(grads):
        expected = gradient(ZOO[name].oracle, args, i)
        tolerance = 2e-4 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(ours, expected, atol=tolerance, err_msg=f"argument {i}")


@pytest.mark.every_case
@over_masked
def test_masked(name: str) -> None:
    """Masked elements, even NaN, affect nothing else; all other results match the oracle."""
    mask = mask_of(name)
    clean = [np.asarray(a, float) for a in primals(name)]
    zoo = ZOO[name]
    counted = np.broadcast_to(mask, zoo.shape)

    @jax.jit
    def of(*args: Any) -> Any:
        def counted_part(*args: Any) -> Any:
            y = zoo.ours(*args, mask=jnp.asarray(mask))
            return jnp.where(counted, y, 0)

        y, back = jax.vjp(counted_part, *args)
        return y, back(jnp.asarray(cotangent(y.shape), y.dtype))

    x, *rest = primals(name)
    y, grads = of(np.where(counted, x, np.nan).astype(np.float32), *rest)

    def oracle(*args: Any) -> Any:
        return np.where(counted, zoo.oracle(*args, mask=mask), 0)

    np.testing.assert_allclose(y, oracle(*clean), rtol=2e-5, atol=2e-5)
    for i, ours in enumerate(grads):
        expected = gradient(oracle, clean, i)
        ours = np.where(counted, ours, 0) if i == 0 else ours
        expected = np.where(counted, expected, 0) if i == 0 else expected
        tolerance = 2e-4 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(ours, expected, atol=tolerance, err_msg=f"argument {i}")
        assert np.isfinite(np.asarray(grads[i])).all()


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@over_zoo
def test_half_precision(name: str, dtype: str) -> None:
    """Half-precision results are computed in float32 and rounded once, to within about one ulp of float64."""
    y, grads = results(name, jnp.dtype(dtype))
    args = [np.asarray(a, float) for a in primals(name, jnp.dtype(dtype))]
    assert y.dtype == jnp.dtype(dtype)
    assert {g.dtype for g in grads} == {jnp.dtype(dtype)}
    unit = float(jnp.finfo(dtype).eps)
    if name in ("add_rms_norm", "add_layer_norm"):  # the norm is that of the rounded sum
        args[:2] = np.asarray(jnp.asarray(args[0] + args[1], dtype), float), np.zeros_like(args[0])
    if name not in ("batch_renorm", "input_norm"):  # their constants depend on the unrounded x
        expected = ZOO[name].oracle(*args)
        np.testing.assert_allclose(np.float64(y), expected, rtol=unit, atol=unit / 4)


@over_zoo
def test_vmap(name: str) -> None:
    """Two nested vmaps match the separate calls."""
    args = primals(name)
    stacked = [np.stack([[a, a[::-1] if a.ndim else 2 * a]] * 2) for a in args]
    batched = jax.jit(jax.vmap(jax.vmap(ZOO[name].ours)))(*stacked)
    one = jax.jit(ZOO[name].ours)
    for i, j in np.ndindex(2, 2):
        alone = one(*(a[i, j] for a in stacked))
        np.testing.assert_allclose(batched[i, j], alone, rtol=1e-5, atol=1e-5)


# In `make test`, one norm for each way to differentiate: batch, example, iteration, clipped, no statistics.
@pytest.mark.parametrize(
    "name",
    thorough_but(
        ZOO, "adain", "batch_renorm", "derf", "evo_norm_b0", "iterative_whitening", "scale_norm"
    ),
)
def test_forward_mode_is_reverse_mode(name: str) -> None:
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩, also for the gradient of the squared gradient."""
    args = primals(name)
    directions = tuple(np.float32(cotangent((*a.shape, 1))[..., 0]) for a in args)

    @jax.jit
    def of(*args: Any) -> Any:
        def loss(*args: Any) -> Any:
            y = ZOO[name].ours(*args)
            return (y * jnp.asarray(cotangent(y.shape), y.dtype)).sum()

        def slope(*args: Any) -> Any:
            return sum((g**2).sum() for g in jax.grad(loss, range(len(args)))(*args))

        pairs = []
        for f in (loss, slope):
            _, forward = jax.jvp(f, args, directions)
            grads = jax.grad(f, range(len(args)))(*args)
            backward = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
            pairs.append((forward, backward))
        return pairs

    for forward, backward in of(*args):
        assert np.isfinite(forward)
        np.testing.assert_allclose(forward, backward, rtol=2e-3, atol=1e-3)
