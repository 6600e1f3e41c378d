"""Every option of every public function, at a value other than its default, against float64.

The options come from the signatures: an option without a row in `VALUES` or `OF_ONE` fails by name.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests import reference
from tests.calls import (
    ARGUMENTS,
    DEVICE_OPTIONS,
    ELSEWHERE,
    FEATURES,
    INPUT_STATS,
    INPUTS,
    MASK,
    POSITIONS,
    STATS,
    X,
    arguments,
    expected,
    functions,
    leaves,
    options,
    parameters,
    pattern,
)
from tests.oracle import assert_close


def _narrow(leaf: Any) -> Any:
    """Casts an array to bfloat16."""
    is_array = isinstance(leaf, (np.ndarray, np.generic, jax.Array))
    return np.asarray(leaf).astype(jnp.bfloat16) if is_array else leaf


RAMP = np.array([1, 0.9, 1.2, 0.8], np.float32)
COUNTED = STATS._replace(count=jnp.full(FEATURES, 3, jnp.int32))
UNREADABLE = np.where(MASK, X, np.nan).astype(np.float32)

VALUES: dict[str, list[dict[str, Any]]] = {
    "activation": [{"activation": name} for name in ("relu", "leaky_relu", "silu", "gelu")],
    "epsilon": [{"epsilon": 0.3}],
    "feature_axes": [{"feature_axes": 1}],
    "mask": [{"mask": MASK}],
    "momentum": [{"momentum": 0.6}, {"momentum": None, "stats": COUNTED}],
    "reduction_axes": [{"reduction_axes": (1, 2)}],
    "unbiased_instances": [
        {"unbiased_instances": True, "momentum": 0.6},
        {"unbiased_instances": True, "mask": MASK},
    ],
    "unbiased": [
        {"unbiased": True, "momentum": 0.6},
        {"unbiased": True, "momentum": 0.6, "mask": MASK},
    ],
}
"""Values for an option in every function that has it."""
READS_A_MASKED_NAN: list[dict[str, Any]] = [{"mask": MASK, "x": UNREADABLE}]
OF_ONE: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("act_norm", "mask"): READS_A_MASKED_NAN,
    ("add_rms_norm", "scale_after_cast"): [{"scale_after_cast": True}],
    ("add_rms_norm", "scale_offset"): [
        {"scale_offset": 1.0},
        {"scale_offset": 1.0, "scale": _narrow(INPUTS["scale"])},
    ],
    ("adain", "style_mask"): [{"style_mask": pattern(INPUTS["style"].shape)}],
    ("batch_norm", "residual"): [{"residual": X[::-1]}],
    ("batch_norm", "save_as"): [{"save_as": "output"}, {"save_as": jnp.bfloat16}],
    ("batch_norm", "virtual_batch_size"): [
        {"virtual_batch_size": 2},
        {"virtual_batch_size": 2, "unbiased": True, "momentum": 0.6, "mask": MASK},
    ],
    ("batch_norm_adapted", "running_share"): [{"running_share": 0.75}],
    ("batch_norm_inference", "mask"): READS_A_MASKED_NAN,
    ("batch_norm_inference", "residual"): [{"residual": X[::-1]}],
    ("batch_renorm", "dmax"): [{"dmax": 0.1}],
    ("batch_renorm", "form"): [
        {"form": "crossq", "momentum": 0.6},
        {"form": "crossq", "rmax": 1.1, "dmax": 0.1, "mask": MASK},
    ],
    ("batch_renorm_inference", "mask"): READS_A_MASKED_NAN,
    ("batch_renorm", "rmax"): [{"rmax": 1.1}],
    ("conv_spectral_norm", "n_steps"): [{"n_steps": 3}],
    ("conv_spectral_norm", "padding"): [{"padding": "VALID"}, {"padding": ((2, 1), (0, 3))}],
    ("conv_spectral_norm", "strides"): [{"strides": (2, 1)}],
    ("derf", "mask"): READS_A_MASKED_NAN,
    ("dynamic_tanh", "mask"): READS_A_MASKED_NAN,
    ("ada_group_norm", "group_size"): [{"num_groups": None, "group_size": 1}],
    ("ada_group_norm", "num_groups"): [{"num_groups": 4}],
    **{
        (f"evo_norm_s{i}", "group_size"): [{"num_groups": None, "group_size": 1}] for i in (0, 1, 2)
    },
    **{(f"evo_norm_s{i}", "num_groups"): [{"num_groups": 4}] for i in (0, 1, 2)},
    ("gated_rms_norm", "num_groups"): [{"num_groups": 2}, {"num_groups": 2, "mask": MASK}],
    ("gated_rms_norm", "norm_before_gate"): [
        {"norm_before_gate": False},
        {"norm_before_gate": False, "num_groups": 4, "feature_axes": 1},
    ],
    ("group_norm", "group_size"): [{"num_groups": None, "group_size": 1}],
    ("group_norm", "num_groups"): [{"num_groups": 4}],
    ("group_norm", "reduction_axes"): [{"reduction_axes": (1, 3)}],
    ("input_norm", "max_abs"): [{"max_abs": 0.5}],
    ("input_norm", "weights"): [
        {"weights": np.linspace(0, 2, 4, dtype=np.float32).reshape(4, 1, 1, 1)},
        {
            "weights": np.linspace(0.01, 0.02, X.size, dtype=np.float32).reshape(X.shape),
            "mask": MASK,
        },
    ],
    ("input_norm_inference", "mask"): READS_A_MASKED_NAN,
    ("input_norm_inference", "max_abs"): [{"max_abs": 0.5}],
    ("iterative_whitening", "mask"): [{"mask": POSITIONS}],
    ("iterative_whitening_inference", "mask"): [
        {"mask": POSITIONS, "x": np.where(POSITIONS, X, np.nan).astype(np.float32)}
    ],
    ("iterative_whitening", "momentum"): [{"momentum": 0.6}],
    ("iterative_whitening", "steps"): [{"steps": 2}],
    ("layer_scale", "multiplier"): [{"multiplier": 3.0}],
    ("layer_scale", "mask"): READS_A_MASKED_NAN,
    ("local_response_norm", "alpha"): [{"alpha": 0.5}],
    ("local_response_norm", "beta"): [{"alpha": 0.5, "beta": 2.0}],
    ("local_response_norm", "k"): [{"k": 2.0}],
    ("local_response_norm", "mask"): [{"alpha": 0.5, "mask": MASK}],
    ("local_response_norm", "size"): [{"alpha": 0.5, "size": 2}],
    ("local_response_norm", "feature_axes"): [{"alpha": 0.5, "feature_axes": 1}],
    ("lp_normalize", "epsilon"): [{"epsilon": 4.0}],
    ("lp_normalize", "p"): [{"p": 1}, {"p": 3.0}],
    ("mean_only_batch_norm_inference", "mask"): READS_A_MASKED_NAN,
    ("modulate", "scale_offset"): [
        {"scale_offset": 1.0},
        {"scale_offset": 1.0, "scale": _narrow(ARGUMENTS["modulate"]["scale"])},
    ],
    ("qk_norm", "key_bias"): [{"kind": "layer", "key_bias": INPUTS["bias"]}],
    ("qk_norm", "kind"): [{"kind": "layer"}, {"kind": "l2"}],
    ("qk_norm", "query_bias"): [{"kind": "layer", "query_bias": INPUTS["bias"]}],
    ("qk_norm", "scale_offset"): [
        {"scale_offset": 1.0},
        {"scale_offset": 1.0, "kind": "layer", "query_scale": _narrow(INPUTS["query_scale"])},
    ],
    ("rms_norm", "fraction"): [{"fraction": 0.5}],
    ("rms_norm", "scale_after_cast"): [{"scale_after_cast": True}],
    ("rms_norm", "scale_offset"): [
        {"scale_offset": 1.0},
        {"scale_offset": 1.0, "scale": _narrow(INPUTS["scale"])},
    ],
    ("sim_norm", "simplex_size"): [{"simplex_size": 4}],
    ("spectral_norm", "n_steps"): [{"n_steps": 3}],  # None: tests/norms/test_spectral_norm.py
    ("switchable_norm_inference", "unbiased_instances"): [
        {"unbiased_instances": True},
        {"unbiased_instances": True, "mask": MASK},
    ],
    ("update_running_stats", "unbiased"): [{"unbiased": True, "momentum": 0.6}],
}
"""Values for an option of a single function."""
ONE_AXIS = {
    *("ada_group_norm", "evo_norm_s0", "evo_norm_s1", "evo_norm_s2"),
    *("group_norm", "sim_norm", "local_response_norm"),
    *("iterative_whitening", "iterative_whitening_inference"),
}
CHANGES_NO_VALUE = {
    ("batch_norm", "save_as"),  # affects only residuals: tests/norms/test_saved.py
    # These affect only rounding: tests/norms/test_scale_after_cast.py
    *((name, "scale_after_cast") for name in ("add_rms_norm", "rms_norm")),
}
ROUND_THEIR_INPUT = {"add_layer_norm", "add_rms_norm"}  # the sum: tests/norms/test_add_norm.py
# Functions whose epsilon is added to, or compared with, a length instead of a square.
EPSILON_OF_A_LENGTH = {
    "forced_magnitude",
    "global_response_norm",
    "init_act_norm",
    "lp_normalize",
    "magnitude_preserving",
}

FUNCTIONS = [name for name in functions() if options(name) and name not in ELSEWHERE]
OPTIONS = [
    (name, option)
    for name in FUNCTIONS
    for option in options(name)
    if option not in ("dtype", *DEVICE_OPTIONS)
]


def rows(name: str, option: str) -> list[dict[str, Any]]:
    """Values for an option; an option that is an input, which every call here passes, gets its default."""
    if (name, option) in OF_ONE:
        return OF_ONE[name, option]
    if option == "feature_axes" and name not in ONE_AXIS:
        return [*VALUES[option], two_feature_axes(name)]
    if option in VALUES:
        return VALUES[option]
    default = parameters(name)[option].default
    return [{option: default}] if option in arguments(name) else []


def two_feature_axes(name: str) -> dict[str, Any]:
    """Inputs with parameters over both feature axes."""

    def of_both(leaf: Any) -> Any:
        is_parameter = np.ndim(leaf) in (1, 2) and np.shape(leaf)[-1] == FEATURES
        return np.multiply.outer(leaf, RAMP) if is_parameter else leaf

    inputs = {k: v for k, v in arguments(name).items() if k != "reduction_axes"}
    return {**jax.tree.map(of_both, inputs), "feature_axes": (1, 3)}


def tiny(name: str) -> dict[str, Any]:
    """Inputs so small that the default epsilon is as large as the value it is added to."""
    epsilon = parameters(name)["epsilon"].default
    size = np.float32(epsilon if name in EPSILON_OF_A_LENGTH else np.sqrt(epsilon))
    inputs = ("x", "style", "query", "key", "kernel")
    given = {k: v * size for k, v in arguments(name).items() if k in inputs}
    if isinstance(arguments(name).get("stats"), jn.RunningStats):
        given["stats"] = jn.RunningStats(STATS.mean * size, STATS.var * size**2)
    if isinstance(arguments(name).get("stats"), jn.InputStats):
        given["stats"] = INPUT_STATS._replace(mean=STATS.mean * size, var=STATS.var * size**2)
    if name == "spectral_norm":  # its epsilon matters next to a kernel of size 1
        state = arguments(name)["state"]
        given = {"state": state._replace(u=state.u * size)}
    return given


def narrow(name: str, kept: tuple[str, ...] = ()) -> dict[str, Any]:
    """The inputs in bfloat16, except those in ``kept``."""
    return {k: v if k in kept else jax.tree.map(_narrow, v) for k, v in arguments(name).items()}


def calls(name: str) -> dict[str, dict[str, Any]]:
    """Labels of all calls to a function, each with its differences from `arguments`."""
    found = {"defaults": {}}
    if "epsilon" in parameters(name):
        found["tiny inputs"] = tiny(name)
    if "dtype" in parameters(name):
        found["narrow result"] = {"dtype": jnp.bfloat16}
        found["narrow inputs"] = {**narrow(name), "dtype": jnp.float32}
        found["narrow parameters"] = narrow(name, kept=("x", "y", "query", "key", "kernel"))
    for function, option in OPTIONS:
        if function == name:
            found |= {f"{option} {i}": row for i, row in enumerate(rows(name, option))}
    return found


@functools.cache
def results(name: str) -> dict[str, list[jax.Array]]:
    """The leaves of the results of every call, from one program."""
    function, given = getattr(jn, name), arguments(name)
    static = {k: v for k, v in given.items() if isinstance(v, (bool, int)) or k == "reduction_axes"}
    arrays = {k: v for k, v in given.items() if k not in static}

    @jax.jit
    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        return {
            label: leaves(function(**(static | arrays | row))) for label, row in calls(name).items()
        }

    return run(arrays)


def check(name: str, label: str) -> None:
    """Checks one call against the reference."""
    wanted = expected(name, arguments(name) | calls(name)[label])
    for got, want in zip(results(name)[label], wanted, strict=True):
        assert_close(got, want)


over_functions = pytest.mark.parametrize("name", FUNCTIONS)


@over_functions
def test_the_reference_has_the_same_options(name: str) -> None:
    """The reference has the same options and defaults, so a default can only be changed in both places."""
    theirs = inspect.signature(getattr(reference, name)).parameters
    ours = {k: p for k, p in parameters(name).items() if k not in ("dtype", *DEVICE_OPTIONS)}
    assert {k: p.default for k, p in ours.items()} == {k: p.default for k, p in theirs.items()}
    assert {p.default for k, p in parameters(name).items() if k not in ours} <= {None}


@over_functions
def test_defaults(name: str) -> None:
    """All inputs without options match the reference, and so do inputs for which epsilon matters."""
    check(name, "defaults")
    if "epsilon" in parameters(name):
        check(name, "tiny inputs")


def test_rows_are_of_options() -> None:
    """All rows belong to existing options."""
    assert OF_ONE.keys() | CHANGES_NO_VALUE <= set(OPTIONS)
    assert ELSEWHERE.keys() <= set(functions())


@pytest.mark.every_case
@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_option(name: str, option: str) -> None:
    """Each option at another value matches the reference and changes the result."""
    tried = rows(name, option)
    assert tried, f"{name} has the option {option!r}: give it a value in OF_ONE"
    for i, row in enumerate(tried):
        check(name, f"{option} {i}")
        if (name, option) in CHANGES_NO_VALUE:
            continue
        others = {} if option == "feature_axes" else {k: row[k] for k in row if k != option}
        given = arguments(name)
        assert not _alike(expected(name, given | row), expected(name, given | others))


def _alike(a: Any, b: Any) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x.shape == y.shape and np.allclose(x, y, atol=1e-3) for x, y in pairs)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "dtype" in parameters(name)])
def test_dtype(name: str) -> None:
    """Results are computed in float32, whatever the input dtype, and rounded once to the requested dtype."""
    for label, dtype in (
        ("narrow result", jnp.bfloat16),
        ("narrow inputs", jnp.float32),
        ("narrow parameters", jnp.float32),
    ):
        if label != "narrow inputs" or name not in ROUND_THEIR_INPUT:
            check(name, label)
        y, *_ = results(name)[label]
        assert y.dtype == dtype, label


@pytest.mark.parametrize("name", sorted(set(functions()) - set(ELSEWHERE)))
def test_lists_are_arrays(name: str) -> None:
    """Python lists and numbers are accepted in place of arrays, in states too, or if nothing is an array."""
    given = arguments(name)
    listed = {k: as_lists(v) for k, v in given.items()}
    f = getattr(jn, name)
    for got, want in zip(leaves(f(**listed)), leaves(f(**given)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def as_lists(value: Any) -> Any:
    """Replaces arrays by lists, also in the fields of states and moments."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(as_lists, value))
    return value.tolist() if isinstance(value, np.ndarray | np.generic | jax.Array) else value
