"""For a value of the wrong type, the error of each function names the argument."""

import inspect
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.calls import INPUTS, X, arguments, functions, parameters
from tests.modules import assert_equal
from tests.selecting import thorough_but
from tests.stands_for import CLASSES, ROWS, SYSTEMS, X as X_OF_MODULES, after_of, fields_of, made
from tests.test_module_fields import BOOKKEEPING, NO_EFFECT

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
# Flags are read like any condition in Python.
FLAGS = {"cumulative", "unbiased"}
# None means JAX's default dtype, no name, or no term to add; in a pair, one may be missing.
MAY_BE_NONE = {
    ("ada_group_norm", "scale"),
    ("ada_group_norm", "shift"),
    ("ada_rms_norm", "scale"),
    ("ada_layer_norm", "scale"),
    ("ada_layer_norm", "shift"),
    ("init_running_stats", "dtype"),
    ("init_spectral_norm", "dtype"),
    ("rms_norm", "scale_offset"),
}


def is_wrong(name: str, parameter: str, kind: str) -> bool:
    """Whether the function does not accept such a value there."""
    annotation = str(parameters(name)[parameter].annotation)
    may_be_none = "None" in annotation or (name, parameter) in MAY_BE_NONE
    return kind != "None" or not may_be_none


@pytest.mark.parametrize("name", thorough_but(functions(), *functions()[::2]))
def test_the_argument_is_named(name: str) -> None:
    """A ValueError or TypeError names the argument before anything is compiled."""
    given = {**arguments(name), **MORE.get(name, {})}
    for parameter in parameters(name).keys() - FLAGS:
        for kind in WRONG:
            if is_wrong(name, parameter, kind):
                with pytest.raises((TypeError, ValueError)) as raised:
                    getattr(jn, name)(**{**given, parameter: WRONG[kind]})
                assert re.search(rf"\b{parameter}\b", str(raised.value)), (parameter, kind)


def test_a_ragged_list_is_named() -> None:
    """A list that is no array is an error like any other value."""
    ragged: Any = [[1.0], [1.0, 2.0]]
    with pytest.raises(ValueError, match=r"^x must be an array of numbers; got "):
        jn.layer_norm(ragged)


# Fields that are read as conditions, ignored, Flax's, or functions that are called as they are.
NOT_CHECKED = {*FLAGS, "error_on_non_matrix", "track_running_stats", "update_stats"}
NOT_CHECKED |= {
    "force_float32_reductions",
    "collection_name",
    "function",
    "promote_dtype",
    "variable_filter",
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_field_is_named(system: str, name: str) -> None:
    """The error of a module names the field when it is created, initialized or called."""
    base = dict(ROWS[name].base)
    args, call = (
        (X_OF_MODULES, *after_of(name, base, len(X_OF_MODULES))),
        {"use_running_average": False},
    )

    def run(field: str) -> None:
        module: Any = made(system, name, {**base, field: object()})
        if system == "linen":
            variables = module.init(jax.random.key(0), *args, **call)
            module.apply(variables, *args, **call, mutable=True)
        else:
            module(*args, **call)

    for field in fields_of(system, name).keys() - BOOKKEEPING.keys() - NOT_CHECKED:
        if (
            name in NO_EFFECT.get(field, ())
            or field.startswith("use_")
            or (system == "nnx" and field in ("axis", "feature_axes"))
        ):
            continue  # these set num_features
        with pytest.raises((TypeError, ValueError)) as raised:
            jax.eval_shape(partial(run, field))
        assert re.search(rf"\b{field}\b", str(raised.value)), field


MODEL = nn.BatchNorm(use_running_average=True)
ROWS_OF_X = X.reshape(-1, 4)
VARIABLES = MODEL.init(jax.random.key(0), ROWS_OF_X)
TOOLS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "accumulate": (
        {"loss": lambda m, b: m(b).sum(), "model": MODEL, "batch": ROWS_OF_X, "micro_batches": 2},
        ("loss", "model", "micro_batches"),
    ),
    "average": ({"old": VARIABLES, "new": VARIABLES, "decay": 0.5}, ("decay",)),
    "convert": (
        {"source": {}, "like": VARIABLES},
        ("names", "transposed", "channels_last", "like"),
    ),
    "examine": ({"model": MODEL, "batch": ROWS_OF_X}, ("model", "run", "where")),
    "fold": ({"model": MODEL, "batch": ROWS_OF_X}, ("model", "run", "where")),
    "freeze": ({"model": MODEL}, ("model", "where")),
    "norm_mask": ({"params": VARIABLES["params"]}, ("where",)),
    "recalibrate": (
        {"model": MODEL, "batches": [ROWS_OF_X]},
        ("model", "batches", "run", "method", "where"),
    ),
    "swap": ({"model": MODEL, "norm": "layer"}, ("model", "norm", "where")),
}


@pytest.mark.parametrize("name", TOOLS)
def test_the_argument_of_a_tool_is_named(name: str) -> None:
    """The error of a tool names each argument that cannot be any tree of arrays."""
    given, named = TOOLS[name]
    tool = getattr(tools, name)
    if "variables" in inspect.signature(tool).parameters:
        given = {**given, "variables": VARIABLES}
    for parameter in named:
        with pytest.raises((TypeError, ValueError)) as raised:
            tool(**{**given, parameter: object()})
        assert re.search(rf"\b{parameter}\b", str(raised.value)), parameter


def test_what_is_right_is_not_blamed() -> None:
    """Errors that are not about a type stay unchanged."""
    with pytest.raises(ValueError, match=r"^kernel must have rank 2 or more"):
        jn.spectral_norm(np.ones(3, np.float32), tuple(INPUTS["state"]))  # pyright: ignore[reportArgumentType]


def test_a_number_may_be_an_array_of_numpy() -> None:
    """Numbers may be NumPy arrays of rank 0, as in a checkpoint, in functions and modules."""
    stats, x = jn.init_running_stats(4), jax.numpy.asarray(X)
    numbers: dict[str, Any] = {"momentum": 0.5, "epsilon": 0.25}
    arrays: dict[str, Any] = {name: np.array(value) for name, value in numbers.items()}
    assert_equal(jn.batch_norm(x, stats, **arrays), jn.batch_norm(x, stats, **numbers))
    assert_equal(jn.layer_norm(x, epsilon=arrays["epsilon"]), jn.layer_norm(x, epsilon=0.25))
    outputs = [
        jnl.BatchNorm(False, **fields).init_with_output(jax.random.key(0), x)
        for fields in (arrays, numbers)
    ]
    assert_equal(*outputs)
    outputs = [jnx.BatchNorm(4, **fields, rngs=nnx.Rngs(0))(x) for fields in (arrays, numbers)]
    assert_equal(*outputs)
