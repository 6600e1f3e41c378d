"""`swap` for every norm that `get_norm` knows: the variables fit, and what can carry over does."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx, tools
from jaxnorm.norms._registry import REGISTRY
from tests.modules import KEY, normal
from tests.tools.models import Stacked

pytestmark = pytest.mark.every_case

NAMES = sorted(norm.name for norm in REGISTRY if norm.name and norm.kind != "weight")
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_batch": {"virtual_batch_size": 2},
    "group": {"num_groups": 2},
    **{f"evo_s{i}": {"num_groups": 2} for i in range(3)},
}
X = normal((4, 3, 2, 6))
LINEN = [nn.BatchNorm, jnl.BatchNorm]
NNX = [nnx.BatchNorm, jnx.BatchNorm]


def structure(variables: Any) -> Any:
    """Shapes and dtypes."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)


class Model(nn.Module):
    """A layer and its norm."""

    norm: Any
    flag: bool | None = None

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """The flag is in the norm or in its call."""
        options = {} if self.flag is None else {"use_running_average": self.flag}
        asked = {"use_running_average": not train} if self.flag is None else {}
        return self.norm(name="bn", **options)(nn.Dense(6)(x), **asked)


@pytest.mark.parametrize("old", LINEN)
@pytest.mark.parametrize("name", NAMES)
def test_variables_are_those_of_the_new_norm(name: str, old: Any) -> None:
    """They have the structure of a fresh ``init``, and both modes give finite values."""
    model = Model(old)
    variables = model.init(KEY, X, train=False)
    new, carried = tools.swap(model, name, variables=variables, **OPTIONS.get(name, {}))
    fresh = jax.eval_shape(lambda: new.init(KEY, X, train=False))
    assert structure(carried) == structure(dict(fresh))
    for train in (True, False):
        y: Any = new.apply(carried, X, train, mutable=["batch_stats"])[0]
        assert y.shape == X.shape and np.isfinite(y).all()


@pytest.mark.parametrize("old", NNX)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_in_nnx(name: str, old: Any) -> None:
    """Both modes give finite values."""
    new: Any = tools.swap(old(6, rngs=nnx.Rngs(0)), name, **OPTIONS.get(name, {}))
    for train in (True, False):
        y = new(X, use_running_average=not train)
        assert y.shape == X.shape and np.isfinite(y).all()


@pytest.mark.parametrize("name", ["act", "switchable", "scale", "frozen_batch", "evo_b0"])
def test_new_variables_of_layers_in_a_loop(name: str) -> None:
    """They are stacked, like those of the batch norm."""
    model, rows = Stacked(nn.BatchNorm), normal((4, 5))
    variables = model.init(KEY, rows, train=False)
    new, carried = tools.swap(model, name, variables=variables)
    fresh = jax.eval_shape(lambda: new.init(KEY, rows, train=False))
    assert structure(carried) == structure(dict(fresh))
    y: Any = new.apply(carried, rows, train=False)
    assert np.isfinite(y).all()


@nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
def in_turn(layers: Any, x: jax.Array) -> jax.Array:
    """Calls a stack of layers, one after the other."""
    return layers(x)


@pytest.mark.parametrize("name", ["act", "switchable", "scale", "frozen_batch", "batch_renorm"])
def test_new_variables_of_a_stack_in_nnx(name: str) -> None:
    """They are stacked, too."""
    stack = nnx.vmap(lambda: nnx.BatchNorm(6, rngs=nnx.Rngs(0)), axis_size=3)()
    new = tools.swap(stack, name)
    y = in_turn(new, X)
    assert y.shape == X.shape and np.isfinite(y).all()
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(nnx.state(new, nnx.Variable)))


def test_no_norm_has_no_feature_axis() -> None:
    """It takes the place of a batch norm over any axis."""
    model = nn.BatchNorm(axis=1, use_running_average=True)
    new, variables = tools.swap(model, "none", variables=model.init(KEY, X))
    np.testing.assert_array_equal(new.apply(variables, X), X)


@pytest.mark.parametrize("use", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_scale_and_bias_that_the_batch_norm_lacks(name: str, use: bool) -> None:
    """A norm that cannot do without them has new ones; the others have none either."""
    model = nn.Sequential([nn.Dense(6), jnl.BatchNorm(True, use_scale=use, use_bias=not use)])
    variables = model.init(KEY, X)
    new, carried = tools.swap(model, name, variables=variables, **OPTIONS.get(name, {}))
    fresh = jax.eval_shape(lambda: new.init(KEY, X))
    assert structure(carried) == structure(dict(fresh))


def trained(old: Any) -> tuple[Any, dict[str, Any]]:
    """A batch norm that evaluates, with statistics and parameters other than the initial ones."""
    arrays = {
        "mean": jnp.arange(6.0),
        "var": jnp.arange(1.0, 7),
        "scale": jnp.arange(2.0, 8),
        "bias": -jnp.arange(6.0),
    }
    if issubclass(old, nn.Module):
        of = {"params": ("scale", "bias"), "batch_stats": ("mean", "var")}
        variables = {c: {n: arrays[n] for n in names} for c, names in of.items()}
        return old(use_running_average=True), {"variables": variables}
    layer = old(6, use_running_average=True, rngs=nnx.Rngs(0))
    for name, array in arrays.items():
        getattr(layer, name)[...] = array
    return layer, {}


@pytest.mark.parametrize("name", ["batch", "ghost_batch", "frozen_batch"])
@pytest.mark.parametrize("old", [*LINEN, *NNX])
def test_a_batch_norm_computes_the_same(old: Any, name: str) -> None:
    """All four arrays carry over, also to one that holds its scale and bias as statistics."""
    model, given = trained(old)
    new: Any = tools.swap(model, name, **given)
    want: Any
    if given:
        want = model.apply(given["variables"], X)
        got = new[0].apply(new[1], X)
    else:
        want, got = model(X), new(X)
        assert type(new.scale) is (nnx.BatchStat if name == "frozen_batch" else nnx.Param)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["batch", "filter_response"])
def test_the_dtype_and_the_count_of_the_batch_norm(name: str) -> None:
    """New parameters have the dtype of the old ones, and the plain average of all batches goes on."""
    model = jnl.BatchNorm(momentum=None, param_dtype=jnp.bfloat16, use_running_average=False)
    variables = model.init(KEY, X)
    new, carried = tools.swap(model, name, variables=variables)
    assert structure(carried) == structure(dict(jax.eval_shape(new.init, KEY, X)))
    assert ("count" in carried.get("batch_stats", {})) == (name == "batch")
    new.apply(carried, X, mutable=["batch_stats"])


@pytest.mark.parametrize("old", [*LINEN, *NNX])
def test_virtual_batches_of_the_default_size(old: Any) -> None:
    """A batch norm without virtual batches does not turn off those of its replacement."""
    x = normal((64, 6))
    x = x.at[:32].add(5.0)
    if issubclass(old, nn.Module):
        model = old(use_running_average=False)
        new, variables = tools.swap(model, "ghost_batch", variables=model.init(KEY, x))
        y, _ = new.apply(variables, x, mutable=["batch_stats"])
    else:
        layer: Any = tools.swap(old(6, rngs=nnx.Rngs(0)), "ghost_batch")
        y = layer(x)
    np.testing.assert_allclose(y.reshape(2, 32, 6).mean(1), 0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [jnl, jnx])
def test_an_evaluating_model_evaluates(system: Any, name: str) -> None:
    """The mode of the batch norm is that of every norm that has one: the statistics stay."""
    options = OPTIONS.get(name, {})
    if system is jnx:
        bn = jnx.BatchNorm(6, rngs=nnx.Rngs(0))
        bn.eval()
        new: Any = tools.swap(bn, name, **options)
        before = nnx.to_pure_dict(nnx.state(new, nnx.BatchStat))
        new(X)
        after = nnx.to_pure_dict(nnx.state(new, nnx.BatchStat))
    else:
        model = Model(jnl.BatchNorm, flag=True)
        variables = model.init(KEY, X, train=False)
        new, carried = tools.swap(model, name, variables=variables, **options)
        _, updated = new.apply(carried, X, train=True, mutable=["batch_stats"])
        before, after = carried.get("batch_stats", {}), updated.get("batch_stats", {})
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("value", [jnp.float32(0.9), np.array(0.9), np.float32(0.9), 0.9])
def test_options_that_are_arrays_of_one_number(value: Any) -> None:
    """Flax hashes options, so they become Python numbers."""
    model = jnl.BatchNorm(use_running_average=False)
    new, carried = tools.swap(model, "batch", variables=model.init(KEY, X), momentum=value)
    updated: Any = new.apply(carried, X, mutable=["batch_stats"])[1]
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * X.mean((0, 1, 2)), rtol=1e-5)


class Relu(jnx.BatchNorm):
    """Adds a relu to batch norm."""

    def __call__(self, x: Any, *args: Any, **options: Any) -> Any:
        """Never returns negative values."""
        return nnx.relu(super().__call__(x, *args, **options))


class FlaxRelu(nnx.BatchNorm):
    """The same for Flax's."""

    def __call__(self, x: Any, *args: Any, **options: Any) -> Any:
        """Never returns negative values."""
        return nnx.relu(super().__call__(x, *args, **options))


class Plain(jnx.BatchNorm):
    """Overrides nothing that is called."""


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [Relu, FlaxRelu])
def test_nnx_layers_that_do_more_are_refused(kind: Any, frozen: bool) -> None:
    """What a subclass adds is not lost silently; other subclasses are replaced."""
    model = nnx.Sequential(jnx.BatchNorm(6, rngs=nnx.Rngs(0)), kind(6, rngs=nnx.Rngs(0)))
    model = tools.freeze(model) if frozen else model
    with pytest.raises(ValueError, match=rf"got {kind.__name__} at 'layers/1', but it overrides"):
        tools.swap(model, "layer")
    assert (tools.swap(model, "layer", where="layers/0")(X) >= 0).all()
    assert isinstance(tools.swap(Plain(6, rngs=nnx.Rngs(0)), "layer"), jnx.LayerNorm)


class WithoutMask(nn.Module):
    """A norm of a user that takes no mask."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Returns x."""
        return x


@pytest.mark.parametrize("name", ["mask", "residual"])
def test_arguments_are_not_dropped(name: str) -> None:
    """An argument that the new norm does not take is an error; None is not."""
    model = jnl.BatchNorm(use_running_average=True)
    new, variables = tools.swap(model, WithoutMask, variables=model.init(KEY, X))
    given: dict[str, Any] = {name: jnp.ones(X.shape, bool if name == "mask" else jnp.float32)}
    with pytest.raises(ValueError, match=f"got a {name} at '', which WithoutMask does not take"):
        new.apply(variables, X, **given)
    none: dict[str, Any] = {name: None}
    np.testing.assert_array_equal(new.apply(variables, X, **none), X)
