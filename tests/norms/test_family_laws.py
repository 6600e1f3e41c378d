"""Laws of the other norms, and equalities between them, with random scale and bias."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw
from tests.family import AXES, Norm, of
from tests.oracle import assert_close

# The law is trivial for a single value, which is its own mean.
SEVERAL = {name: norm for name, norm in AXES.items() if name != "instance no positions"}
every = pytest.mark.parametrize("name", SEVERAL)

Function = Callable[..., jax.Array]


def exactly(norm: Norm) -> Any:
    """The norm with ε = 0, compiled."""
    return jax.jit(of(norm.ours, epsilon=0.0))


def sums(norm: Norm, values: Any) -> np.ndarray:
    """Sums over each cell."""
    return np.bincount(norm.cells(norm.shape).ravel(), np.float64(values).ravel())


def same(
    ours: Function, theirs: Function, shape: tuple[int, ...], features: int, **mask: Any
) -> None:
    """Checks that two norms agree in outputs and in the gradients of x and random scale and bias."""
    rng = np.random.default_rng(0)
    at = (draw(rng, shape, "float32", 1.0, 2.0), *draw(rng, (2, shape[features]), "float32"))
    dy = draw(rng, shape, "float32")

    @jax.jit
    def both(at: Any) -> Any:
        pairs = (jax.vjp(of(f, **mask), *at) for f in (ours, theirs))
        return [(y, *pull(jnp.asarray(dy))) for y, pull in pairs]

    for got, want in zip(*both(at), strict=True):
        assert_close(got, np.asarray(want))


FIRST = {"feature_axes": 1}
EQUAL: dict[str, tuple[Function, Function, tuple[int, ...], int]] = {
    "one group is layer norm": (
        of(jn.group_norm, num_groups=1),
        of(jn.layer_norm, reduction_axes=(1, 2, 3)),
        (2, 3, 4, 6),
        -1,
    ),
    "one group is layer norm, channels first": (
        of(jn.group_norm, num_groups=1, **FIRST),
        of(jn.layer_norm, reduction_axes=(1, 2), **FIRST),
        (3, 4, 5),
        1,
    ),
    "one group is layer norm over the same axes": (
        of(jn.group_norm, num_groups=1, reduction_axes=(2, 3)),
        of(jn.layer_norm, reduction_axes=(2, 3)),
        (2, 3, 4, 6),
        -1,
    ),
    "a channel a group is instance norm": (
        of(jn.group_norm, num_groups=None, group_size=1),
        jn.instance_norm,
        (2, 3, 4, 6),
        -1,
    ),
    "a channel a group is instance norm, channels first": (
        of(jn.group_norm, num_groups=4, **FIRST),
        of(jn.instance_norm, **FIRST),
        (3, 4, 5),
        1,
    ),
    "instance norm is layer norm over positions": (
        jn.instance_norm,
        of(jn.layer_norm, reduction_axes=(1, 2)),
        (2, 3, 4, 6),
        -1,
    ),
    "batch norm is layer norm over examples and positions": (
        lambda x, *affine, **mask: jn.batch_norm(
            x, jn.init_running_stats(6), *affine, epsilon=1e-6, **mask
        )[0],
        of(jn.layer_norm, reduction_axes=(0, 1, 2)),
        (2, 3, 4, 6),
        -1,
    ),
    "batch norm of one example is instance norm": (
        lambda x, *affine, **mask: jn.batch_norm(
            x, jn.init_running_stats(6), *affine, epsilon=1e-6, **mask
        )[0],
        jn.instance_norm,
        (1, 3, 4, 6),
        -1,
    ),
}


@pytest.mark.sampled
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("law", EQUAL)
def test_one_norm_is_another(law: str, with_mask: bool) -> None:
    """Outputs and gradients of the two norms agree."""
    ours, theirs, shape, features = EQUAL[law]
    mask = {"mask": np.random.default_rng(1).random(shape) < 0.7} if with_mask else {}
    same(ours, theirs, shape, features, **mask)


def test_rms_norm_is_layer_norm_without_a_mean() -> None:
    """RMS norm equals layer norm where the mean is zero, and is √n times the L2-normalized vector."""
    x = draw(np.random.default_rng(0), (5, 16), "float32", 1.0, 2.0)
    rms = jn.rms_norm(x, epsilon=0.0)
    assert_close(jn.l2_normalize(x, epsilon=0.0) * 4, np.asarray(rms))
    assert float(jnp.abs(rms - jn.layer_norm(x, epsilon=0.0)).max()) > 0.1
    x = jnp.concatenate([x, -x], axis=1)
    assert_close(jn.rms_norm(x), np.asarray(jn.layer_norm(x)))


@every
def test_statistics_of_the_output(name: str) -> None:
    """Each cell of the output has mean 0 and variance 1, mean square 1, or length 1."""
    norm = SEVERAL[name]
    y = exactly(norm)(norm.primals()[0])
    n = sums(norm, np.ones(norm.shape))
    there = n > 0
    if norm.statistic == "variance":
        np.testing.assert_allclose(sums(norm, y), 0, atol=1e-5 * n.max())
    squares = sums(norm, np.float64(y) ** 2)[there]
    np.testing.assert_allclose(
        squares, 1 if norm.statistic == "square length" else n[there], rtol=1e-5
    )


@every
def test_shift_and_scale_change_nothing(name: str) -> None:
    """Exact scaling by powers of two changes nothing but the sign; only RMS is sensitive to shifts."""
    norm = SEVERAL[name]
    x, *affine = norm.primals()
    x = np.round(x * 64) / 64
    f = exactly(norm)
    y = np.asarray(f(x, *affine))
    assert_close(f(8 * x, *affine), y)
    assert_close(f(-x / 4, *(a * s for a, s in zip(affine, (-1, 1), strict=False))), y)
    if norm.statistic == "variance":
        assert_close(f(x + 16, *affine), y)
    else:
        assert np.abs(f(x + 16, *affine) - y).max() > 0.1


@every
def test_idempotent_as_epsilon_goes_to_0(name: str) -> None:
    """As ε goes to 0, a second norm undoes a first one that has uniform scale and bias."""
    norm = SEVERAL[name]
    x, *affine = norm.primals()
    first = [np.full_like(a, c) for a, c in zip(affine, (2.5, -0.5), strict=False)]
    f = jax.jit(lambda x, affine, epsilon: norm.ours(x, *affine, epsilon=epsilon))
    errors = []
    for epsilon in (0.3, 1e-3, 0.0):
        once, twice = f(x, affine, epsilon), f(f(x, first, epsilon), affine, epsilon)
        errors.append(float(jnp.abs(twice - once).max()))
    assert errors[0] > 10 * errors[1] > 0
    assert errors[2] < 2e-6 * float(jnp.abs(once).max()) + 1e-6


@every
def test_gradient_is_orthogonal_to_shift_and_scale(name: str) -> None:
    """Σ dx x = 0 in each cell, so training rotates a kernel without scaling it; Σ dx = 0 as well."""
    norm = SEVERAL[name]
    x, *affine = norm.primals()
    w = draw(np.random.default_rng(3), norm.shape, "float32")
    dx = jax.jit(jax.grad(lambda x: (w * norm.ours(x, *affine, epsilon=0.0) ** 2).sum()))(x)
    size = np.abs(dx).max()
    assert size > 1e-3
    tolerance = 1e-5 * size * sums(norm, np.ones(norm.shape)).max()
    assert np.all(np.abs(sums(norm, np.float64(dx) * x)) < tolerance * np.abs(x).max())
    if norm.statistic == "variance":
        assert np.all(np.abs(sums(norm, dx)) < tolerance)


@every
def test_order_within_a_cell_does_not_matter(name: str) -> None:
    """Reversing x along every reduced axis, groups included, reverses y."""
    norm = SEVERAL[name]
    x = norm.primals()[0]
    axes = norm.reduced
    f = jax.jit(norm.ours)
    assert_close(f(np.flip(x, axes)), np.flip(np.asarray(f(x)), axes))
