"""Transformations in every order: tracing must not depend on which comes first.

The named axis that a norm pools over ends with its vmap. A derivative taken outside that vmap, or outside
a transformation that holds a traced program (jit, remat, scan, cond, while), must not need the name
again.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxnorm as jn
from tests.selecting import thorough_but

Function = Callable[[jax.Array], jax.Array]


def over(x: jax.Array, **options: Any) -> jax.Array:
    """Batch norm on each device, pooled with the others."""
    return jn.batch_norm(x, jn.init_running_stats(2), axis_name="devices", **options)[0]


NORMS: dict[str, Function] = {
    "batch": over,
    "batch, groups": lambda x: over(x, axis_index_groups=[[0, 2], [1, 3]]),
    "batch, save_as": lambda x: over(x, save_as=jnp.bfloat16),
    "layer": lambda x: jn.layer_norm(x, axis_name="devices"),
    "rms": lambda x: jn.rms_norm(x, axis_name="devices"),
    "group": lambda x: jn.group_norm(x, num_groups=1, axis_name="devices"),
    "moments": lambda x: x / jn.moments(x, 0, axis_name="devices").var,
}


def holds(f: Function) -> Function:
    """A loop that ends after one iteration."""
    return lambda x: lax.fori_loop(0, jnp.ones((), int), lambda _, x: f(x), x)


HOLDING: dict[str, Callable[[Function], Function]] = {
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "scan": lambda f: lambda x: lax.scan(lambda x, _: (f(x), None), x, length=1)[0],
    "cond": lambda f: lambda x: lax.cond(x.sum() < jnp.inf, f, lambda x: x, x),
    "while": holds,
}


def directional(f: Function) -> Function:
    """The derivative along a direction that depends on x."""
    return lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1]


def gradient(f: Function) -> Function:
    """The gradient of a loss that depends on the whole result."""
    return lambda x: jax.grad(lambda x: (f(x) * jnp.sin(x)).sum())(x)


DERIVATIVES = {"jvp": directional, "grad": gradient}
ORDERS = [
    (*outer, derivative, holder)
    for derivative, holder in itertools.product(DERIVATIVES, HOLDING)
    for outer in [(), *((other,) for other in (*HOLDING, *DERIVATIVES))]
    # Reverse mode does not work through a loop of unknown length.
    if "while" not in (holder, *outer) or "grad" not in (derivative, *outer)
]


@pytest.mark.parametrize("norm", thorough_but(NORMS, "batch"))
def test_every_order_is_traced_alike(norm: str) -> None:
    """Derivatives inside and outside of transformations, and of each other, keep the shape of x."""
    x = jax.ShapeDtypeStruct((4, 3, 2), jnp.float32)
    for order in ORDERS:
        f: Function = jax.vmap(NORMS[norm], axis_name="devices")
        for name in reversed(order):
            f = {**HOLDING, **DERIVATIVES}[name](f)
        assert jax.eval_shape(f, x).shape == x.shape, order


@pytest.mark.parametrize("norm", thorough_but(NORMS, "batch, groups", "batch, save_as"))
def test_a_derivative_outside_of_the_mapped_axis(norm: str) -> None:
    """A gradient outside the mapped axis is the same through jit, remat, scan and cond."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2)), jnp.float32)
    mapped = jax.vmap(NORMS[norm], axis_name="devices")
    want = jax.jit(gradient(mapped))(x)
    for holder in ("jit", "remat", "scan", "cond"):
        np.testing.assert_allclose(jax.jit(gradient(HOLDING[holder](mapped)))(x), want, atol=2e-5)
