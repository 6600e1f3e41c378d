"""Every number and flag of every public function and module is validated.

The arguments come from the annotations: a new one is tried, and fails if no invalid value is refused.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import tools
from jaxnorm.core.calling._arguments import FLAGS, FLAGS_OR_NONE, NUMBERS
from tests.calls import arguments, functions, parameters
from tests.stands_for import CLASSES, ROWS, SYSTEMS, X, after_of, fields_of, made

NO_FLAG = ["abc", 1, 0.0, np.ones(2), jnp.array(True)]
NO_NUMBER = ["abc", True, np.ones(2), np.complex64(1), jnp.ones(()) > 0]
NO_INTEGER = ["abc", True, 1.5, jnp.ones(())]
OUT_OF_RANGE = [
    -1e3,
    np.float32(-1e3),
    np.array(-1e3),
    jnp.array(-1e3),
    float("nan"),
    jnp.array(jnp.nan),
]
NOT_FINITE = [float("nan"), float("inf")]
# Shapes, axes and arguments that JAX itself validates are tested elsewhere.
SHAPES = {
    "feature_axes",
    "reduction_axes",
    "axis",
    "axes",
    "feature_shape",
    "num_features",
    "strides",
    "padding",
}
SHAPES |= {"variable_filter", "axis_index_groups", "axis_name", "domain", "rngs", "parent", "name"}
# Any number is valid; some of these may be trained, and are then arrays of any value.
ANY = {
    "scale_offset",
    "multiplier",
    "beta",
    "seed",
    ("derf", "alpha"),
    "shift",
    ("dynamic_tanh", "alpha"),
}
ANY |= {("scale_norm", "scale"), ("magnitude_preserving", "gain"), "num_groups", "group_size"}
MAY_BE_TRAINED = ANY - {"scale_offset", "multiplier", "beta", "seed", "num_groups", "group_size"}
STATIC = {"p", "fraction"}  # never an array


def kinds_of(annotation: Any) -> set[type]:
    """The plain types in a union."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return set(typing.get_args(annotation)) if union else {annotation}


def refused_of(owner: str, name: str, annotation: Any) -> list[Any]:
    """Values that must be refused; none for arguments that are neither numbers nor flags."""
    kinds = kinds_of(annotation)
    if name in SHAPES or not kinds & {bool, int, float}:
        return []
    if bool in kinds:
        return NO_FLAG
    unbounded = name in ANY or (owner, name) in ANY
    if int in kinds:
        return NO_INTEGER + ([] if unbounded else [-1000])
    if unbounded:
        trained = name in MAY_BE_TRAINED or (owner, name) in MAY_BE_TRAINED
        return NOT_FINITE + (["abc"] if trained else NO_NUMBER)
    return NO_NUMBER + OUT_OF_RANGE


def assert_refused(call: Callable[..., Any], name: str, values: list[Any]) -> None:
    """Checks that each value raises a ValueError that starts with the name and quotes the value."""
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must .*; got ") as raised:
            call(**{name: value})
        assert len(str(raised.value)) > 50  # the rest says what to do


OPTIONS = [
    (name, option, refused)
    for name in functions()
    for option, parameter in parameters(name).items()
    if (refused := refused_of(name, option, parameter.annotation))
]


@pytest.mark.parametrize(
    ("name", "option", "refused"), OPTIONS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_functions(name: str, option: str, refused: list[Any]) -> None:
    """Functions refuse invalid values, also under jit."""
    given = {k: v for k, v in arguments(name).items() if k != option}
    if option == "group_size":
        given["num_groups"] = None
    if name == "init_running_stats":
        given["feature_shape"] = 4
    if name == "init_whitening" and option != "features":
        given["features"] = 4
    call = partial(getattr(jn, name), **given)
    assert_refused(call, option, refused)
    assert_refused(lambda **bad: jax.jit(partial(call, **bad))(), option, refused[:1])


def annotations_of(system: str, name: str) -> dict[str, Any]:
    """The annotations of a class's fields."""
    cls = getattr(SYSTEMS[system], name)
    if dataclasses.is_dataclass(cls):
        found = {field.name: field.type for field in dataclasses.fields(cls)}
    else:
        found = {n: p.annotation for n, p in inspect.signature(cls.__init__).parameters.items()}
    known = fields_of(system, name)
    return {n: annotation for n, annotation in found.items() if n in known}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", CLASSES)
def test_modules(system: str, name: str) -> None:
    """Modules refuse invalid values when they are created or called."""
    row = ROWS[name]
    for field, annotation in annotations_of(system, name).items():

        def call(**bad: Any) -> Any:
            fields = {**row.base, **bad}
            if "group_size" in fields:
                fields["num_groups"] = None
            after = after_of(name, dict(row.base), len(X))

            def run() -> Any:
                module, flag = made(system, name, fields), {"use_running_average": False}
                if system == "nnx":
                    return module(X, *after, **flag)
                return module.init(jax.random.key(0), X, *after, **flag)

            return jax.eval_shape(run)

        assert_refused(call, field, refused_of(name, field, annotation))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "name", [n for n in CLASSES if "use_running_average" in fields_of("linen", n)]
)
def test_the_mode_of_a_call(system: str, name: str) -> None:
    """The mode must be a static boolean; the error for a traced one says so."""
    base = {"track_running_stats": True} if name == "InstanceNorm" else dict(ROWS[name].base)
    module, after = made(system, name, base), after_of(name, base, len(X))

    def call(use_running_average: Any) -> Any:
        flag = {"use_running_average": use_running_average}
        if system == "nnx":
            return module(X, *after, **flag)
        return module.init(jax.random.key(0), X, *after, **flag)

    assert_refused(call, "use_running_average", NO_FLAG)
    with pytest.raises(ValueError, match="name it in static_argnames"):
        jax.jit(call)(True)


TOOLS: dict[str, Callable[..., Any]] = {
    "accumulate": partial(tools.accumulate, lambda m, x: m(x).mean()),
    "assert_parity": partial(tools.assert_parity, lambda p, b, a: (b, p), {}, X),
    "average": partial(tools.average, X, X),
    "examine": tools.examine,
    "fold": tools.fold,
    "freeze": tools.freeze,
    "recalibrate": tools.recalibrate,
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools(name: str) -> None:
    """Tools validate their own arguments before the model."""
    model = nnx.Sequential(SYSTEMS["nnx"].BatchNorm(8, rngs=nnx.Rngs(0)))
    inputs = {
        "accumulate": (model, X),
        "examine": (model, X),
        "fold": (model, X),
        "freeze": (model,),
        "recalibrate": (model, [X]),
    }
    for option, parameter in inspect.signature(getattr(tools, name)).parameters.items():
        required = (
            {"micro_batches": 2} if name == "accumulate" and option != "micro_batches" else {}
        )
        call = partial(TOOLS[name], *inputs.get(name, ()), **required)
        assert_refused(call, option, refused_of(name, option, parameter.annotation))


def test_no_tool_is_left_out() -> None:
    """Every tool with a number or a flag is in the table."""
    public = {n: f for n, f in vars(tools).items() if inspect.isfunction(f)}
    having = {
        name
        for name, tool in public.items()
        for option, parameter in inspect.signature(tool).parameters.items()
        if refused_of(name, option, parameter.annotation)
    }
    assert having == set(TOOLS)


def with_more(base: Any, more: dict[str, Any]) -> Any:
    """A user's subclass with more fields, or more attributes if the class has no fields."""
    fields = {**more, "__annotations__": dict.fromkeys(more, Any)}
    if not issubclass(base, nnx.Module):  # a subclass of a Linen module is a dataclass by itself
        return type("Sub", (base,), fields)
    if dataclasses.is_dataclass(base):
        return dataclasses.dataclass(eq=False, kw_only=True)(type("Sub", (base,), fields))

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        for name, value in more.items():
            setattr(self, name, value)
        base.__init__(self, *args, **options)

    return type("Sub", (base,), {"__init__": __init__})


@pytest.mark.every_case
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", CLASSES)
def test_what_a_subclass_adds_has_no_rules(
    name: str, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have the name of an argument of another norm; the norm's own fields keep their rules."""
    own = fields_of(system, name)
    attributes = {"update_stats", "use_running_average", "use_shift", "steps"}  # of some modules
    others = {*NUMBERS, *FLAGS, *FLAGS_OR_NONE} - {*own} - attributes
    base = getattr(SYSTEMS[system], name)
    monkeypatch.setattr(SYSTEMS[system], name, with_more(base, dict.fromkeys(others, "anything")))
    module = made(system, name, {**ROWS[name].base})
    assert all(getattr(module, other) == "anything" for other in others)
    if "epsilon" in own:
        with pytest.raises(ValueError, match="epsilon must be"):
            made(system, name, {**ROWS[name].base, "epsilon": -1.0})
