"""A layer under the transforms of Flax as it is: `nnx.vmap(layer)(x)`, `nn.remat(Layer)(...)(x)`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl
from tests.modules import KEY, assert_close, assert_equal, compiled, loose
from tests.stands_for import CLASSES, ROWS, X, after_of, has_modes, is_wrapper, made

every_class = pytest.mark.parametrize("name", CLASSES)
EVALUATION = {"use_running_average": True}


def arguments(name: str) -> tuple[Any, ...]:
    """What a layer is called with."""
    return X, *after_of(name, dict(ROWS[name].base), len(X))


@every_class
def test_nnx_transforms_take_a_layer(name: str) -> None:
    """A layer, and its ``__call__``: what defaults to nothing is no argument that they refuse."""
    args = arguments(name)
    batches = jax.tree.map(lambda a: jnp.stack([a, a]), args)

    def outcomes(args: Any, batches: Any) -> Any:
        layer: Any = made("nnx", name, dict(ROWS[name].base))
        layer.eval()
        whole, call = (None,) + (0,) * len(batches), type(layer).__call__
        of_one = [layer(*args), nnx.remat(layer)(*args), nnx.remat(call)(layer, *args)]
        return of_one, [nnx.vmap(layer)(*batches), vmapped(layer, call, whole, batches)]

    def vmapped(layer: Any, call: Callable[..., Any], axes: Any, batches: Any) -> Any:
        return nnx.vmap(lambda layer, *args: call(layer, *args), in_axes=axes)(layer, *batches)

    with loose():
        (y, *others), mapped = compiled(outcomes, args, batches)
    for other in others:
        assert_close(other, y, 1e-6)
    for both in mapped:
        for i in range(2):
            assert_close(jax.tree.map(lambda a, i=i: a[i], both), y, 1e-5)


@every_class
def test_jax_transforms_capture_a_layer_in_evaluation(name: str) -> None:
    """`jax.jit`, `vmap`, `grad` and `eval_shape` of a function that a layer is not an argument of."""
    args = arguments(name)
    layer: Any = made("nnx", name, dict(ROWS[name].base))
    layer.eval()

    def loss(x: jax.Array) -> Any:
        return sum(jnp.sum(y**2) for y in jax.tree.leaves(layer(x, *args[1:])))

    def penalty(x: jax.Array) -> Any:
        return jnp.sum(jax.grad(loss)(x) ** 2)

    def variables() -> Any:
        return jax.tree.map(np.asarray, nnx.state(layer, nnx.Not(nnx.RngState)))

    with loose():
        before = variables()
        once, mapped = compiled(lambda x: (loss(x), jax.vmap(loss)(x[None])), X)
        slope = jax.eval_shape(jax.grad(penalty), X)
    np.testing.assert_allclose(mapped[0], once, rtol=1e-5)
    assert slope.shape == X.shape
    assert_equal(variables(), before)


@pytest.mark.parametrize("name", [n for n in CLASSES if n != "SpectralNorm"])
def test_linen_transforms_take_a_class(name: str) -> None:
    """`nn.vmap`, `nn.remat` and `nn.jit` of a class: its variables, and what it computes.

    Spectral norm is told its mode in the call, by a keyword, which these transforms trace or drop;
    `linen/test_wrapped_transforms.py` has it in a model.
    """
    args, fields = arguments(name), dict(ROWS[name].base)
    batches = jax.tree.map(lambda a: jnp.stack([a, a]), args)
    cls: Any = getattr(jnl, name)
    fields |= EVALUATION if has_modes(name) else {}
    layer = (nn.Dense(3),) if is_wrapper(name) else ()

    def outcomes(args: Any, batches: Any) -> Any:
        variables = cls(*layer, **fields).init(KEY, *args)
        made = [cls, nn.remat(cls), nn.jit(cls)]
        axes: Any = {"params": None, "batch_stats": None}
        vmapped = nn.vmap(cls, variable_axes=axes, split_rngs={"params": False})
        each = [f(*layer, **fields).apply(variables, *args) for f in made]
        return each, vmapped(*layer, **fields).apply(variables, *batches)

    with loose():
        (y, *others), mapped = compiled(outcomes, args, batches)
    for other in others:
        assert_close(other, y, 1e-6)
    for i in range(2):
        assert_close(jax.tree.map(lambda a, i=i: a[i], mapped), y, 1e-5)
