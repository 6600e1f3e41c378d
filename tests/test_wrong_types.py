"""A value of a wrong type, for each argument of each function: the error says which argument it is."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from tests.calls import INPUTS, X, arguments, functions, parameters
from tests.modules import assert_equal

WRONG: dict[str, Any] = {
    "a string": "wrong",
    "an object": object(),
    "a dict": {"a": 1},
    "a list of strings": ["relu"],
    "None": None,
}
MORE: dict[str, dict[str, Any]] = {
    "combine": {"a": INPUTS["moments"], "b": INPUTS["moments"]},
    "init_running_stats": {"feature_shape": 4},
    "init_spectral_norm": {"key": jax.random.key(0)},
    "init_whitening": {"features": 4},
    "pool": {"m": INPUTS["moments"], "axes": 0},
    "stats_of_domain": {"stats": jn.init_running_stats((2, 4)), "domain": 0},
    "with_stats_of_domain": {
        "stats": jn.init_running_stats((2, 4)),
        "domain": 0,
        "updated": jn.init_running_stats(4),
    },
}
# A flag is read as Python reads any condition.
FLAGS = {"cumulative", "training", "unbiased"}
# None is jax's default dtype, no name, or what is not added; of a pair, what is not given.
MAY_BE_NONE = {
    ("ada_layer_norm", "scale"),
    ("ada_layer_norm", "shift"),
    ("init_running_stats", "dtype"),
    ("init_spectral_norm", "dtype"),
    ("rms_norm", "scale_offset"),
}


def is_wrong(name: str, parameter: str, kind: str) -> bool:
    """Whether such a value is none that the function takes there."""
    annotation = str(parameters(name)[parameter].annotation)
    may_be_none = "None" in annotation or (name, parameter) in MAY_BE_NONE
    return kind != "None" or not may_be_none


@pytest.mark.parametrize("name", functions())
def test_the_argument_is_named(name: str) -> None:
    """By a ValueError or TypeError, before anything is compiled."""
    given = {**arguments(name), **MORE.get(name, {})}
    for parameter in parameters(name).keys() - FLAGS:
        for kind in WRONG:
            if is_wrong(name, parameter, kind):
                with pytest.raises((TypeError, ValueError)) as raised:
                    getattr(jn, name)(**{**given, parameter: WRONG[kind]})
                assert re.search(rf"\b{parameter}\b", str(raised.value)), (parameter, kind)


def test_what_is_right_is_not_blamed() -> None:
    """An error that is of no argument's type stays what it is."""
    with pytest.raises(ValueError, match=r"^kernel must have rank 2 or more"):
        jn.spectral_norm(np.ones(3, np.float32), tuple(INPUTS["state"]))  # pyright: ignore[reportArgumentType]

    def broken(x: Any) -> Any:
        raise KeyError(x)

    with pytest.raises(KeyError):
        jax.vmap(broken)(X)


def test_a_number_may_be_an_array_of_numpy() -> None:
    """Of rank 0, as a checkpoint has it; in functions and modules."""
    stats, x = jn.init_running_stats(4), jax.numpy.asarray(X)
    numbers: dict[str, Any] = {"momentum": 0.5, "epsilon": 0.25}
    arrays: dict[str, Any] = {name: np.array(value) for name, value in numbers.items()}
    assert_equal(jn.batch_norm(x, stats, **arrays), jn.batch_norm(x, stats, **numbers))
    assert_equal(jn.batch_renorm(x, stats, **arrays), jn.batch_renorm(x, stats, **numbers))
    assert_equal(jn.layer_norm(x, epsilon=arrays["epsilon"]), jn.layer_norm(x, epsilon=0.25))
    outputs = [
        jnl.BatchNorm(False, **fields).init_with_output(jax.random.key(0), x)
        for fields in (arrays, numbers)
    ]
    assert_equal(*outputs)
    outputs = [jnx.BatchNorm(4, **fields, rngs=nnx.Rngs(0))(x) for fields in (arrays, numbers)]
    assert_equal(*outputs)
