"""Inputs as large or small as float32 can square give the same results and gradients as inputs near 1.

With epsilon 0, multiplying x by a power of two leaves a norm unchanged and divides its gradient by that
power. Both are exact, so any difference is a loss of range.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.calls import INPUTS
from tests.cases import draw

SHAPE = (4, 6, 8)
X = draw(np.random.default_rng(0), SHAPE, "float32", 0.5)
DY = draw(np.random.default_rng(1), SHAPE, "float32")
STATS = jn.RunningStats(jnp.linspace(-0.5, 0.5, 8), jnp.linspace(0.5, 2.0, 8))
# At 1e13, variance^(3/2) overflows float32; 1e15 is the end of the range in docs/numerics.md.
SCALES = [2.0**k for k in (43, 50, -43, -50)]


def of_stats(norm: Callable[..., Any], x: Any, size: Any, **options: Any) -> Any:
    """The norm with running statistics of values of the given size."""
    stats = jn.RunningStats(STATS.mean * size, STATS.var * size**2)
    y = norm(x, stats, **options)
    return y[0] if isinstance(y, tuple) else y


def sized(norm: Callable[..., Any]) -> Callable[..., Any]:
    """The norm as a function of x alone."""
    return lambda x, size, **options: norm(x, **options)


SCALE, BIAS = jnp.linspace(0.5, 1.5, 8), jnp.linspace(-1, 1, 8)
AFFINE = {"scale": SCALE, "bias": BIAS}
NORMS: dict[str, Callable[..., Any]] = {
    "batch": partial(of_stats, jn.batch_norm, **AFFINE),
    "batch, saved": partial(of_stats, jn.batch_norm, **AFFINE, save_as="output"),
    "batch, inference": partial(of_stats, jn.batch_norm_inference, **AFFINE),
    "batch, adapted": partial(of_stats, jn.batch_norm_adapted, **AFFINE, running_share=0.5),
    "batch renorm": partial(of_stats, jn.batch_renorm, **AFFINE),
    "domain": partial(of_stats, jn.tracked_instance_norm, **AFFINE),
    "switchable": partial(
        of_stats,
        jn.switchable_norm,
        mean_weights=INPUTS["mean_weights"],
        var_weights=INPUTS["var_weights"],
    ),
    "evo b0": lambda x, size, **options: of_stats(
        partial(jn.evo_norm_b0, v=SCALE), x, size, **options
    ),
    "layer": sized(partial(jn.layer_norm, **AFFINE)),
    "layer, positions": sized(partial(jn.layer_norm, reduction_axes=(1, 2))),
    "instance": sized(partial(jn.instance_norm, **AFFINE)),
    "group": sized(partial(jn.group_norm, num_groups=2, **AFFINE)),
    "rms": sized(partial(jn.rms_norm, scale=SCALE)),
    "pixel": sized(jn.pixel_norm),
    "filter response": sized(jn.filter_response_norm),
    "l2": sized(jn.l2_normalize),
    "lp": sized(partial(jn.lp_normalize, p=3)),
    "scale": sized(jn.scale_norm),
    "weight": sized(partial(jn.weight_norm, scale=SCALE)),
    "standardization": sized(partial(jn.weight_standardization, gain=SCALE)),
    "scaled standardization": sized(jn.scaled_weight_standardization),
    "magnitude": sized(jn.magnitude_preserving),
}


def pulled(name: str, x: Any, dy: Any, size: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """The value, the gradient and the derivative along dy, for an x of the given size."""
    f = partial(NORMS[name], size=size, epsilon=epsilon)
    y, pull = jax.vjp(f, x)
    along = jax.jvp(f, (x,), (dy * size,))[1]
    return y, pull(dy)[0] * size, along


@pytest.mark.parametrize("name", NORMS)
def test_scale_changes_nothing(name: str) -> None:
    """The value and both derivatives do not depend on the size of x, from 1e-15 to 1e15."""
    run = jax.jit(partial(pulled, name, epsilon=0.0))
    want = run(X, DY, size=jnp.float32(1))
    for scale in SCALES:
        got = run(X * np.float32(scale), DY, size=jnp.float32(scale))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=f"{scale:g}")


@pytest.mark.parametrize("name", NORMS)
def test_constant_rows(name: str) -> None:
    """Gradients of constant rows are finite for any epsilon, tiny ones and 0 included."""
    epsilons = (
        (0.0, 1e-37, 1e-30) if name != "magnitude" else (0.0, 1e-15)
    )  # for squares; for a length
    run = jax.jit(lambda x: [pulled(name, x, DY, jnp.float32(1), e) for e in epsilons])
    for constant in (0.0, 3.0):
        for leaf in jax.tree.leaves(run(jnp.full(SHAPE, constant))):
            assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("name", ["batch", "layer", "instance", "group"])
def test_the_gradient_of_constant_rows(name: str) -> None:
    """The gradient of a constant row is that of (x - mean) / sqrt(epsilon)."""
    axes = {"batch": (0, 1), "layer": 2, "instance": 1, "group": (1, 3)}[name]
    shape = (4, 6, 2, 4) if name == "group" else SHAPE
    affine = jnp.ones(8), jnp.zeros(8)
    f = partial(NORMS[name], size=jnp.float32(1), epsilon=1e-30, scale=affine[0], bias=affine[1])
    dx = jax.jit(lambda x, dy: jax.vjp(f, x)[1](dy)[0])(jnp.full(SHAPE, 3.0), DY)
    wide = np.float64(DY).reshape(shape)
    want = (wide - wide.mean(axes, keepdims=True)) * 1e15
    np.testing.assert_allclose(dx, want.reshape(SHAPE), rtol=1e-4, atol=1e9)
