"""Flax's transforms of a layer itself: `nnx.vmap(layer)(x)`, `nn.remat(Layer)(...)(x)`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxnorm import linen as jnl, nnx as jnx
from tests.modules import KEY, assert_close, assert_equal, compiled, loose
from tests.selecting import thorough_but
from tests.stands_for import (
    CLASSES,
    ROWS,
    X,
    after_of,
    has_modes,
    is_wrapper,
    made,
    systems_with,
)

HALF = CLASSES[::2]  # in `make test`
every_class = pytest.mark.parametrize("name", thorough_but(CLASSES, *HALF))
EVALUATION = {"use_running_average": True}


def arguments(name: str) -> tuple[Any, ...]:
    """The arguments of a layer."""
    return X, *after_of(name, dict(ROWS[name].base), len(X))


@every_class
def test_nnx_transforms_take_a_layer(name: str) -> None:
    """NNX transforms accept a layer and its ``__call__``, and optional arguments do not get in the way."""
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
    """In evaluation, `jax.jit`, `vmap`, `grad` and `eval_shape` can capture a layer by closure."""
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


@pytest.mark.parametrize("name", thorough_but([n for n in CLASSES if n != "SpectralNorm"], *HALF))
def test_linen_transforms_take_a_class(name: str) -> None:
    """`nn.vmap`, `nn.remat` and `nn.jit` of a class create the same variables and give the same results.

    Spectral norm gets its mode as a keyword argument of the call, which these transforms trace or drop;
    `linen/test_wrapped_transforms.py` tests it inside a model.
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


@pytest.mark.parametrize("name", [n for n in CLASSES if systems_with(n, "axis_name")])
def test_linen_layers_are_initialized_outside_of_the_axis(name: str) -> None:
    """`init` may run outside of the mapped axis that devices share, and gives the same variables."""
    fields = dict(ROWS[name].base) | ({"use_running_average": False} if has_modes(name) else {})
    plain, shared = (made("linen", name, fields | more) for more in ({}, {"axis_name": "batch"}))
    expected, found = (compiled(layer.init, KEY, *arguments(name)) for layer in (plain, shared))
    assert_equal(found, expected)


# --- layers inside a wrapper -----------------------------------------------------------------------


class Shifted(nn.Module):
    """A layer whose call has a second argument and two options."""

    @nn.compact
    def __call__(self, x: Any, shift: Any, *, factor: Any, use_running_average: bool) -> Any:
        """Returns a value that depends on each argument."""
        return factor * nn.Dense(3)(x) + shift + 1.0 * use_running_average


class NnxShifted(nnx.Module):
    """The same in NNX."""

    def __init__(self) -> None:
        """Creates the layer."""
        self.dense = nnx.Linear(8, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, shift: Any, *, factor: Any, use_running_average: bool) -> Any:
        """Returns a value that depends on each argument."""
        return factor * self.dense(x) + shift + 1.0 * use_running_average


@pytest.mark.parametrize("name", [n for n in CLASSES if is_wrapper(n)])
def test_wrappers_pass_on_all_arguments(name: str) -> None:
    """The wrapped layer gets the arguments of the call, positional or by keyword, and the flag."""
    function = {"function": jnp.tanh} if name == "Reparameterized" else {}
    wrapper: Any = getattr(jnl, name)(Shifted(), **function)
    module: Any = getattr(jnx, name)(NnxShifted(), **function, rngs=nnx.Rngs(0))

    def outcomes(x: Any) -> Any:
        flag: dict[str, Any] = {"use_running_average": True}
        variables = wrapper.init(KEY, x, 0.0, factor=1, **flag)
        for call in (lambda *a, **o: wrapper.apply(variables, *a, **o), module):
            plain = call(x, shift=0.0, factor=1, **flag)
            yield call(x, shift=5.0, factor=2, **flag), 2 * plain - 1 + 5
            # As in Flax, the second argument of nnx.SpectralNorm is ``update_stats``.
            if call is not module or name != "SpectralNorm":
                yield call(x, 5.0, factor=1, **flag), plain + 5

    for got, want in compiled(lambda x: list(outcomes(x)), X):
        assert_close(got, want, 1e-5)


# --- meshes with explicit axes -------------------------------------------------------------------


@pytest.mark.jax_0_10
@pytest.mark.parametrize(
    "name", thorough_but([n for n in CLASSES if n != "IterativeWhitening"], *HALF)
)
def test_channels_may_be_split_by_an_explicit_mesh(name: str) -> None:
    """With sharded channels, variables, gradients and state stay replicated.

    Whitening is excluded: it multiplies channels with one another, so they would have to be gathered.
    """
    mesh = jax.make_mesh((2,), ("b",), axis_types=(AxisType.Explicit,))
    fields, training = dict(ROWS[name].base), {"use_running_average": False}

    def in_linen(*args: Any) -> Any:
        module: Any = made("linen", name, fields)
        variables = module.init(KEY, *args, **training)

        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            y, updated = module.apply(given, *args, **training, mutable=["batch_stats"])
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(y)), updated

        params = variables.get("params", {})
        return variables, jax.grad(loss, has_aux=True)(params)

    def in_nnx(*args: Any) -> Any:
        module: Any = made("nnx", name, fields)
        module(*args, **training)
        return nnx.state(module, nnx.BatchStat)

    with loose(), jax.set_mesh(mesh):
        place = lambda a: jax.device_put(a, NamedSharding(mesh, P(*[None] * (a.ndim - 1), "b")))  # noqa: E731
        x, *others = arguments(name)
        args = place(x), *others
        before, (slopes, updated) = jax.eval_shape(in_linen, *args)
        stats = jax.eval_shape(in_nnx, *args)
    for a in jax.tree.leaves((before, slopes, updated, stats)):
        assert a.sharding is None or a.sharding.is_fully_replicated
