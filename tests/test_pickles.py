"""Every module and every state survives `pickle` and `copy.deepcopy` unchanged."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from jaxnorm.norms._shared import _initial
from tests.calls import INPUTS
from tests.modules import KEY, assert_equal, loose
from tests.stands_for import CLASSES, ROWS, X, after_of, is_wrapper, made

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
}
every_way = pytest.mark.parametrize("how", COPIES)
TRAINING = {"use_running_average": False}


def fields_of(name: str) -> dict[str, Any]:
    """The fields that the class requires, with a function that can be pickled, unlike JAX's."""
    function = {"function": jn.weight_norm} if name == "Reparameterized" else {}
    return {**ROWS[name].base, **function}


@every_way
@pytest.mark.sampled
@pytest.mark.parametrize("name", CLASSES)
def test_a_linen_module(name: str, how: str) -> None:
    """A copy has the same fields and creates the same variables."""
    layer = (nn.Dense(3, kernel_init=nn.initializers.ones),) if is_wrapper(name) else ()
    module: Any = getattr(jnl, name)(*layer, **fields_of(name))
    args = X, *after_of(name, fields_of(name), len(X))
    again = COPIES[how](module)
    assert type(again) is type(module)
    with loose():
        variables = [
            jax.eval_shape(lambda m=m: m.init(KEY, *args, **TRAINING)) for m in (module, again)
        ]
    assert variables[0] == variables[1]


@every_way
@pytest.mark.sampled
@pytest.mark.parametrize("name", CLASSES)
def test_an_nnx_module(name: str, how: str) -> None:
    """A copy has the same variables and gives outputs of the same shapes."""
    module: Any = made("nnx", name, fields_of(name))
    args = X, *after_of(name, fields_of(name), len(X))
    again = COPIES[how](module)
    assert_equal(nnx.state(again), nnx.state(module))
    with loose():
        shapes = [nnx.eval_shape(lambda m, a: m(*a, **TRAINING), m, args) for m in (module, again)]
    assert shapes[0] == shapes[1]


@every_way
@pytest.mark.parametrize("name", ["stats", "state", "moments"])
def test_a_state(name: str, how: str) -> None:
    """Copies of the functions' named tuples are equal."""
    again = COPIES[how](INPUTS[name])
    assert type(again) is type(INPUTS[name])
    assert_equal(again, INPUTS[name])


@every_way
@pytest.mark.parametrize("norms", [jnl, jnx], ids=["linen", "nnx"])
def test_a_choice(norms: Any, how: str) -> None:
    """Results of `get_norm` can be copied."""
    chosen = norms.get_norm("batch", momentum=0.5)
    again = COPIES[how](chosen)
    assert (again.func, again.keywords) == (chosen.func, chosen.keywords)


@pytest.mark.parametrize(
    "init", [f for f in vars(_initial).values() if inspect.isfunction(f)], ids=lambda f: f.__name__
)
def test_initializers_take_keywords(init: Any) -> None:
    """As JAX's own do."""
    assert init(jax.random.key(0), (3, 4), dtype=jnp.float16).dtype == jnp.float16
    assert init(jax.random.key(0), shape=(3, 4), dtype=jnp.float32).shape == (3, 4)
