"""`get_norm` selects a norm by name, in both systems, for use in the same model."""

import inspect
import re
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx
from jaxnorm.norms._registry import REGISTRY
from tests.modules import KEY, Fields, called, compiled, flat, load, moved, normal
from tests.selecting import thorough_but

pytestmark = pytest.mark.every_case

ACTIVATIONS: dict[str, Fields] = {
    **{norm.name: {} for norm in REGISTRY if norm.name and norm.kind != "weight"},
    "batch": {"momentum": 0.5},
    "layer": {"epsilon": 1e-3},
    "rms": {"scale_offset": 1.0},
    "group": {"num_groups": 2},
    "instance": {"track_running_stats": True},
    "local_response": {"size": 3},
    "act": {"feature_axes": -1},
    "batch_renorm": {"momentum": 0.5, "rmax": 2.0, "dmax": 1.0},
    "derf": {"use_bias": False},
    "dynamic_tanh": {"use_scale": False},
    **{f"evo_b{i}": {"momentum": 0.5} for i in range(3)},
    **{f"evo_s{i}": {"num_groups": 2} for i in range(3)},
    "filter_response": {"use_threshold": False},
    "frozen_batch": {"epsilon": 1e-3},
    "ghost_batch": {"virtual_batch_size": 2, "momentum": 0.5},
    "global_response": {"epsilon": 1e-3},
    "iterative_whitening": {"steps": 3, "momentum": 0.5},
    "mean_only_batch": {"momentum": 0.5},
    "pixel": {"epsilon": 1e-3},
    "scale": {"epsilon": 1e-3},
    "switchable": {"momentum": 0.5},
}
WEIGHTS: dict[str, Fields] = {
    **{norm.name: {} for norm in REGISTRY if norm.name and norm.kind == "weight"},
    "spectral": {"n_steps": 2},
    "weight": {"scale_init": None},
    "weight_standardization": {"use_gain": True},
}
NAMES = {**ACTIVATIONS, **WEIGHTS}
WITH_MOMENTUM = {"instance", *(n for n, fields in ACTIVATIONS.items() if "momentum" in fields)}
KEEPING = {"spectral"} | WITH_MOMENTUM
ONE_OF_A_KIND = ("batch", "layer", "evo_b0", "spectral", "scaled_weight_standardization")
LINEN: dict[str, Any]
NNX: dict[str, Any]
LINEN, NNX = ({name: s.get_norm(name).func for name in get_args(s.NormName)} for s in (jnl, jnx))
X = normal((4, 6, 8))
MASK = (jnp.arange(4) < 3).reshape(4, 1, 1)
TARGET = normal((4, 6, 8), seed=1)


class Linen(nn.Module):
    """A model that accepts any norm: of activations after a layer, or of weights around it."""

    norm: Any
    around: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: Any = None) -> jax.Array:
        """Applies a layer and its norm."""
        if self.around:
            return self.norm(nn.Dense(8))(x, use_running_average=not train)
        return self.norm()(nn.Dense(8)(x), use_running_average=not train, mask=mask)


class Nnx(nnx.Module):
    """The same model in NNX."""

    def __init__(self, norm: Any, around: bool, rngs: nnx.Rngs) -> None:
        """Creates a layer and its norm."""
        self.layer = nnx.Linear(8, 8, rngs=rngs)
        self.around = around
        self.norm = norm(self.layer if around else 8, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool, mask: Any = None) -> jax.Array:
        """Applies the norm after the layer, or around it."""
        if self.around:
            return self.norm(x, use_running_average=not train)
        return self.norm(self.layer(x), use_running_average=not train, mask=mask)


@pytest.mark.parametrize("name", thorough_but(NAMES, *ONE_OF_A_KIND))
def test_a_linen_model_takes_it(name: str) -> None:
    """A training step lowers the loss and updates the state, if any; evaluation does not update it."""
    model = Linen(jnl.get_norm(name, **NAMES[name]), name in WEIGHTS)

    def step(key: jax.Array) -> Any:
        variables = model.init(key, X, True)

        def loss(params: Any, variables: Any) -> Any:
            given = {**variables, "params": params}
            y, updated = model.apply(given, X, True, MASK, mutable=["batch_stats"])
            return ((y - TARGET) ** 2).mean(), updated

        (before, updated), grads = jax.value_and_grad(loss, has_aux=True)(
            variables["params"], variables
        )
        optimizer = optax.sgd(0.05)
        moves, _ = optimizer.update(grads, optimizer.init(variables["params"]))
        params = optax.apply_updates(variables["params"], moves)
        after, _ = loss(params, variables)
        trained = {**variables, **updated}
        y, same = model.apply(trained, X, False, MASK, mutable=["batch_stats"])
        return before, after, grads, variables, updated, y, same

    before, after, grads, variables, updated, y, same = compiled(step, KEY)
    assert after < before and jnp.isfinite(y).all()
    has_state = name in KEEPING or name == "frozen_batch"
    assert ("batch_stats" in variables) == has_state == ("batch_stats" in updated)
    if name in KEEPING:
        assert moved(flat(variables["batch_stats"]), flat(updated["batch_stats"])) == set(
            flat(updated)
        )
        assert moved(flat(updated), flat(same)) == set()
    assert all(np.any(g != 0) for n, g in flat(grads).items() if not n.endswith("bias"))


@pytest.mark.parametrize("name", thorough_but(NAMES, *ONE_OF_A_KIND))
def test_an_nnx_model_takes_it(name: str) -> None:
    """With the same variables, the NNX model gives the Linen model's results in training and evaluation."""
    norms = jnl.get_norm(name, **NAMES[name]), jnx.get_norm(name, **NAMES[name])
    model = Linen(norms[0], name in WEIGHTS)
    module = Nnx(norms[1], name in WEIGHTS, nnx.Rngs(0))

    def answers(key: jax.Array) -> Any:
        variables = model.init(key, X, True)
        y, updated = model.apply(variables, X, True, MASK, mutable=["batch_stats"])
        return variables, y, model.apply({**variables, **updated}, X, False, MASK), updated

    variables, *expected, updated = compiled(answers, KEY)
    given = {alike(n): a for n, a in flat(variables).items()}
    load(module, given)
    found = called(module, lambda m, x: (m(x, True, MASK), m(x, False, MASK)), X)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    stats = {alike(n): a for n, a in flat(updated).items()}
    assert moved(given, flat(module)) == (set() if name == "frozen_batch" else set(stats))
    for path, value in stats.items():
        np.testing.assert_allclose(flat(module)[path], value, rtol=1e-5, atol=1e-6)


def alike(name: str) -> str:
    """The name in the NNX model of a Linen variable."""
    first, *rest = name.split("/")
    if first == "Dense_0":
        return "/".join(["layer", *rest])
    return "/".join(["norm", *(part for part in rest if part != "Dense_0")])


@pytest.mark.parametrize("name", NAMES)
def test_options_reach_the_class(name: str) -> None:
    """Options given to `get_norm` reach the class, and the model can override them."""
    layer: Any = nn.Dense(8), nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    of_linen: Any = jnl.get_norm(name, **NAMES[name])
    of_nnx: Any = jnx.get_norm(name, **NAMES[name])
    made = [
        of_linen(*layer[:1]) if name in WEIGHTS else of_linen(),
        of_nnx(layer[1] if name in WEIGHTS else 8, rngs=nnx.Rngs(0)),
    ]
    assert [type(m) for m in made] == [LINEN[name], NNX[name]]
    for module in made:
        for option, value in NAMES[name].items():
            if not option.endswith("_init"):  # NNX calls initializers and does not store them
                assert getattr(module, option) == value
    for option, value in NAMES[name].items():
        if option != "scale_init":
            other: Any = not value if isinstance(value, bool) else 1 if option == "momentum" else 4
            made_so = of_linen(*(layer[:1] if name in WEIGHTS else ()), **{option: other})
            assert getattr(made_so, option) == other != value


@pytest.mark.parametrize("system", [jnl, jnx], ids=["linen", "nnx"])
@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_an_error_at_once(name: str, system: Any) -> None:
    """`get_norm` itself raises an error that names an unknown option, or one of another norm."""
    with pytest.raises(TypeError, match="momentun"):
        system.get_norm(name, **NAMES[name], momentun=0.9)
    if name not in WITH_MOMENTUM:
        with pytest.raises(TypeError, match="momentum"):
            system.get_norm(name, momentum=0.9)


@pytest.mark.parametrize("system", [jnl, jnx], ids=["linen", "nnx"])
@pytest.mark.parametrize("name", ["", "Batch", "bach", "BatchNorm", None])
def test_an_unknown_name_is_an_error_that_lists_all(name: Any, system: Any) -> None:
    """The error for an unknown name lists all names; case matters."""
    with pytest.raises(ValueError, match=", ".join(get_args(jnl.NormName))):
        system.get_norm(name)


@pytest.mark.parametrize("system", [jnl, jnx], ids=["linen", "nnx"])
@pytest.mark.parametrize("norm", [norm for norm in REGISTRY if norm.name], ids=lambda n: n.name)
def test_other_ways_to_write_a_name_get_a_suggestion(system: Any, norm: Any) -> None:
    """The error for the class, the usual name of the function, or a typo suggests the right name."""
    for given in {norm.layer, f"{norm.name}_norm", norm.name.upper()} - {norm.name}:
        with pytest.raises(ValueError, match=rf"got '{given}'\. Did you mean '{norm.name}'\?$"):
            system.get_norm(given)


@pytest.mark.parametrize(
    ("given", "hint"),
    [("gruop", " Did you mean 'group'?"), ("sync_batch", ""), ("layer_scale", ""), ("xyz", "")],
)
def test_a_suggestion_is_close(given: str, hint: str) -> None:
    """A typo gets a suggestion, and a norm without a name does not get another norm's."""
    with pytest.raises(ValueError, match=re.escape(f"got {given!r}.{hint}") + "$"):
        jnl.get_norm(given)


def test_names_in_a_linen_model_are_those_of_the_class() -> None:
    """``BatchNorm_0``, ``WeightNorm_1``: a checkpoint does not depend on how the class was chosen."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(2):
                x = jnl.get_norm("batch", use_running_average=False)()(x)
                x = jnl.get_norm("weight")(nn.Dense(8))(x)
            return x

    variables = jax.eval_shape(Model().init, KEY, X)
    assert set(variables["params"]) == {
        f"{name}_{i}" for name in ("BatchNorm", "WeightNorm", "Dense") for i in (0, 1)
    }


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_norm_of_activations_has_the_one_call(name: str) -> None:
    """Norms of activations take ``x``, ``mask`` and ``use_running_average``, and require nothing else."""
    for norms in (LINEN, NNX):
        parameters = inspect.signature(inspect.unwrap(norms[name].__call__)).parameters
        own = {"residual"} if name in ("batch", "ghost_batch") else set()
        assert set(parameters) == {"self", "x", "mask", "use_running_average"} | own
        assert all(parameters[n].default is None for n in ("mask", "use_running_average"))
