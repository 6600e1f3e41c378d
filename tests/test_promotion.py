"""The dtype of a result is the promoted dtype of x and the parameters as given, with every option.

Values that are widened on the way, above all a scale with an offset, must not affect it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.calls import arguments, functions, parameters
from tests.compiling import EVERYTHING
from tests.norms.test_options import FUNCTIONS, calls
from tests.stands_for import (
    CLASSES,
    ROWS,
    SYSTEMS,
    VALUES,
    X,
    after_of,
    fields_of,
    has_modes,
    is_wrapper,
    made,
)
from tests.test_module_fields import INSTEAD, REFUSED

# Fields that set the dtype, and the mode, which the call sets.
SAID = {"dtype", "param_dtype", "promote_dtype", "use_running_average"}
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32
# The dtypes of x and the parameters, and their promoted dtype.
PAIRS = ((BF16, BF16, BF16), (F16, BF16, F32), (F16, F16, F16), (BF16, F32, F32), (F32, F16, F32))
PAIRS = PAIRS if EVERYTHING else PAIRS[:2]
ACTIVATIONS = {"x", "y", "style", "query", "key", "kernel", "residual"}
STATE = {"stats", "image", "weights"}  # not parameters
OF_THE_SECOND = {"key", "key_scale"}  # of `qk_norm`
ONLY_OF_THE_FIRST = {"conv_spectral_norm", "magnitude_preserving"}  # as documented


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array that takes part in promotion."""
    inexact = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return isinstance(leaf, (np.ndarray, np.generic, jax.Array)) and inexact


def result(name: str, given: dict[str, Any]) -> Any:
    """The dtype of the first result, without computing it."""
    arrays = {k: v for k, v in given.items() if all(map(is_array, jax.tree.leaves(v)))}
    options = {k: v for k, v in given.items() if k not in arrays}
    y = jax.eval_shape(lambda arrays: getattr(jn, name)(**options, **arrays), arrays)
    return jax.tree.leaves(y)[0].dtype


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "dtype" in parameters(n)])
def test_functions(name: str) -> None:
    """The promoted dtype is right for all combinations of arguments and every value of every option."""
    for label, row in calls(name).items():
        if "dtype" in row:
            continue
        for of_x, of_parameters, both in PAIRS:
            given = {}
            for argument, value in (arguments(name) | row).items():
                dtype = of_x if argument in ACTIVATIONS else of_parameters
                given[argument] = jax.tree.map(
                    lambda a, dtype=dtype: np.asarray(a, dtype) if is_array(a) else a, value
                )
            of_result = {k for k, v in given.items() if any(map(is_array, jax.tree.leaves(v)))}
            alone = of_result <= ACTIVATIONS | STATE | OF_THE_SECOND or name in ONLY_OF_THE_FIRST
            assert result(name, given) == (of_x if alone else both), (label, of_x, of_parameters)


@pytest.mark.parametrize("name", [n for n in functions("dtype") if n in FUNCTIONS])
def test_defaults_promote_nothing(name: str) -> None:
    """A parameter whose default is a number does not affect the dtype."""
    required = {k for k, p in parameters(name).items() if p.default is p.empty}
    given = {
        k: jax.tree.map(lambda a: np.asarray(a, BF16) if is_array(a) else a, v)
        for k, v in arguments(name).items()
        if k in required or k in ("num_groups", "simplex_size")
    }
    assert result(name, given) == BF16


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", [n for n in CLASSES if not is_wrapper(n)])
def test_modules(system: str, name: str) -> None:
    """Half-precision modules keep the dtype for every field at a value other than its default."""
    row, known = ROWS[name], fields_of(system, name)
    half = {"param_dtype": BF16} if "param_dtype" in known else {}
    tried: list[dict[str, Any]] = [{}]
    for field, values in {**VALUES, **row.values}.items():
        if field in known.keys() - SAID and (name, field) not in REFUSED:
            tried += [{field: value} for value in values]
    for fields in tried:
        instead = INSTEAD.get(next(iter(fields), ""), {})
        fields = {**row.base, **instead, **fields, **half}

        def called(fields: dict[str, Any] = fields) -> Any:
            x, *after = jax.tree.map(_half, (X, *after_of(name, fields, len(X))))
            module, call = made(system, name, fields), {}
            if has_modes(name):
                call = {"use_running_average": False}
            if system == "nnx":
                return module(x, *after, **call)
            return module.init_with_output(jax.random.key(0), x, *after, **call)[0]

        for y in jax.tree.leaves(jax.eval_shape(called)):
            assert y.dtype == BF16, fields


def _half(a: Any) -> Any:
    return a.astype(BF16) if jnp.issubdtype(a.dtype, jnp.floating) else a
