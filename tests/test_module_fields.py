"""Every field of every module, at a value other than its default, against the corresponding function.

`tests.stands_for` has that function for each class. Linen and NNX are each compared with it, not with one
another. The fields come from the classes: a new class or field without a value there fails by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from tests.compiling import EVERYTHING
from tests.modules import (
    ACTIVATIONS,
    KEY,
    Fields,
    assert_close,
    assert_equal,
    compiled,
    loose,
    normal,
)
from tests.selecting import REPRESENTATIVES, thorough_but
from tests.stands_for import (
    BF16,
    CLASSES,
    MASK,
    ROWS,
    SYSTEMS,
    VALUES,
    Asked,
    Variables,
    X,
    after_of,
    by_name,
    fields_of,
    has_modes,
    is_wrapper,
    made,
    start,
    systems_with,
    variables_of,
)

AFTER_THE_FIRST = jnp.arange(4).reshape(4, 1, 1, 1) > 0
DEVICES, GROUPS = 4, [[0, 1], [2, 3]]
# Fields without an effect on outputs and variables.
NO_EFFECT = {
    "use_fast_variance": set(CLASSES),  # accepted for compatibility with Flax
    "force_float32_reductions": {"GroupNorm", "LayerNorm", "RMSNorm"},  # likewise
    "promote_dtype": {"WeightNorm"},  # likewise
    "param_dtype": {
        "AdaIN",
        "InputNorm",
        "LocalResponseNorm",
        "PixelNorm",
        "SimNorm",
    },  # there are no parameters
}
# Fields that only matter together with another: without force_float32_reductions, the state has the
# param_dtype. A warm-up matters if the limits are not at 1 and 0 anyway.
BESIDE = {"force_float32_reductions": "param_dtype", "warmup_steps": "rmax"}
INSTEAD = {"group_size": {"num_groups": None}, "kind": {"use_bias": False}}
# Fields that are always refused, a value, and part of the error message.
REFUSED: dict[tuple[str, str], tuple[Any, str]] = {
    **{
        (name, "feature_axes"): (1, "must be the last axis")
        for name in ("Spade", "SpadeBatchNorm", "SpadeGroupNorm")
    },
    ("IterativeWhitening", "axis_index_groups"): (GROUPS, "no axis_index_groups"),
    ("QKNorm", "mask"): (MASK, "Mask the logits"),
}
ELSEWHERE = {
    "axis_name": "test_devices",
    "axis_index_groups": "test_devices",
    "save_as": "test_what_is_saved",
    "scale_after_cast": "test_scale_after_cast",
    "collection_name": "test_where_spectral_norm_keeps_its_state",
    "error_on_non_matrix": "test_a_convolution_is_no_matrix",
    "scale_metadata": "test_metadata",
    "bias_metadata": "test_metadata",
}
# Fields that evaluation ignores, as it does initializers.
OF_TRAINING = {"unbiased", "use_fast_variance", "force_float32_reductions", "virtual_batch_size"}
MODES = {"use_running_average", "update_stats"}  # they choose between training and evaluation
BOOKKEEPING = {
    "parent": "Flax's",
    "name": "Flax's",
    "rngs": "random streams for the initializers",
    "num_features": "the sizes of the variables, which every comparison needs",
    "layer_instance": "what is wrapped in every comparison",
}


# --- creating and calling modules ----------------------------------------------------------------


def unlike(value: Any) -> Any:
    """A value that no variable starts with, and that its dtype represents exactly."""
    if jnp.issubdtype(value.dtype, jnp.integer):
        return value + jnp.asarray(3, value.dtype)
    more = np.linspace(0.1, 0.5, value.size, dtype=np.float32).reshape(value.shape)
    info = jnp.finfo(value.dtype)
    exact = jax.lax.reduce_precision(value.astype(jnp.float32) + more, info.nexp, info.nmant)
    return exact.astype(value.dtype)


class Seen(NamedTuple):
    """Initial variables, output, and variables after the call, from a module or its reference."""

    initial: Variables
    y: Any
    after: Variables


def in_linen(
    name: str, fields: Fields, x: Any, after: tuple[Any, ...], calls: dict[str, Fields]
) -> dict[str, Seen]:
    """Runs a Linen module in each call, with variables at values that none starts with."""
    module, call = made("linen", name, fields), next(iter(calls.values()))
    tree = module.init(KEY, x, *after, **{n: a for n, a in call.items() if n != "mask"})
    given, found = jax.tree.map(unlike, tree), {}
    for mode, call in calls.items():
        y, updated = module.apply(given, x, *after, **call, mutable=["batch_stats"])
        found[mode] = Seen(by_name(tree), y, by_name({**given, **updated}))
    return found


def in_nnx(
    name: str, fields: Fields, x: Any, after: tuple[Any, ...], calls: dict[str, Fields], begin: Any
) -> dict[str, Seen]:
    """The same for an NNX module, with all variables in ``begin`` changed."""

    @jax.jit  # setting NNX variables takes longer in a larger program
    def run(x: Any, after: Any, begin: Variables) -> dict[str, Seen]:
        module, found = made("nnx", name, fields), {}
        variables = variables_of(module)
        initial = {n: variable[...] for n, variable in variables.items()}
        assert initial.keys() == begin.keys()
        for mode, call in calls.items():
            for n, variable in variables.items():
                variable[...] = unlike(begin[n])
            y = module(x, *after, **call)
            found[mode] = Seen(initial, y, {n: v[...] for n, v in variables.items()})
        return found

    return run(x, after, begin)


def asked(name: str, x: Any, after: tuple[Any, ...], begin: Variables, fields: Fields) -> Asked:
    """The call for the reference: in training, with the same variables."""
    defaults = {**fields_of("nnx", name), **fields_of("linen", name)}
    given = {n: unlike(value) for n, value in begin.items()}
    if "promote_dtype" in fields and name not in NO_EFFECT["promote_dtype"]:
        x, promoted = 2 * x, {n: 2 * given[n] for n in ("scale", "bias") if n in given}
        given |= promoted
    return Asked(x, after, given, defaults | fields, training=True)


# --- each field ------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A comparison: a field, all fields of the module, and the case with a different result."""

    field: str
    fields: Fields
    versus: str = "base"


def values_of(name: str, field: str) -> tuple[Any, ...]:
    """The values to try for a field."""
    return {**VALUES, **ROWS[name].values}.get(field, ())


def is_idle(name: str, field: str) -> bool:
    """Whether a field has no effect in this class."""
    return name in NO_EFFECT.get(field, ())


def cases_of(name: str) -> dict[str, Case]:
    """A case for each value of each field, and one without.

    In `make test`, only representatives have cases with fields.
    """
    base = dict(ROWS[name].base)
    found = {"base": Case("", base)}
    if not is_wrapper(name) and (name, "mask") not in REFUSED:
        found["mask"] = Case("mask", base)
    for field in {**fields_of("nnx", name), **fields_of("linen", name)}:
        if field in BOOKKEEPING or field in ELSEWHERE or (name, field) in REFUSED:
            continue
        for i, value in enumerate(values_of(name, field)):
            case = Case(field, base | INSTEAD.get(field, {}) | {field: value})
            if field in BESIDE and not is_idle(name, field):
                other = BESIDE[field]
                beside = case.fields | {other: values_of(name, other)[0]}
                case = Case(field, beside, f"{other} 0")
            found[f"{field} {i}"] = case
    if name not in REPRESENTATIVES and not EVERYTHING:
        return {label: found[label] for label in ("base", "mask") if label in found}
    return found


def calls_of(name: str, case: Case) -> dict[str, Fields]:
    """The calls in training and evaluation, which omit the mode if a field sets it."""
    value = case.fields.get(case.field)
    if case.field == "use_running_average":
        return {"evaluation" if value else "training": {}}
    if case.field == "update_stats":
        return {"training" if value else "evaluation": {}}
    mask = {"mask": ROWS[name].mask} if case.field == "mask" else {}
    training, evaluation = ({"use_running_average": flag, **mask} for flag in (False, True))
    once = case.field.endswith("_init") or case.field in OF_TRAINING
    both = (has_modes(name) and not once) or not case.field
    return {"training": training, **({"evaluation": evaluation} if both else {})}


def seen_of(name: str, whole: jax.Array) -> dict[str, dict[str, dict[str, Seen]]]:
    """Results by case, by system (or "expected"), and by mode."""
    found: dict[str, dict[str, dict[str, Seen]]] = {}
    for label, case in cases_of(name).items():
        after, calls = after_of(name, case.fields, len(X)), calls_of(name, case)
        mask = ROWS[name].mask if case.field == "mask" else None
        x = whole if mask is None else jnp.where(mask | AFTER_THE_FIRST, whole, jnp.nan)
        seen: dict[str, dict[str, Seen]] = {}
        begin = found["base"]["linen"]["training"].initial if found else {}
        systems = systems_with(name, *case.fields)
        if "linen" in systems:
            seen["linen"] = in_linen(name, case.fields, x, after, calls)
            begin = next(iter(seen["linen"].values())).initial
        if "nnx" in systems:
            seen["nnx"] = in_nnx(name, case.fields, x, after, calls, begin)
        question = asked(name, x, after, begin, case.fields)._replace(mask=mask)
        given, seen["expected"] = {n: unlike(value) for n, value in begin.items()}, {}
        for mode in calls:
            y, updated = ROWS[name].reference(question._replace(training=mode == "training"))
            seen["expected"][mode] = Seen(begin, y, given | updated)
        found[label] = seen
    return found


@pytest.mark.every_case
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_field_has_a_value(system: str, name: str) -> None:
    """Every field has a value in the tables that differs from the case it is compared with."""
    assert name in ROWS, f"{name} stands for nothing"
    known = fields_of(system, name)
    for field in known.keys() - BOOKKEEPING.keys():
        if field in ELSEWHERE:
            assert ELSEWHERE[field] in globals()
        elif (name, field) not in REFUSED:
            values, usual = values_of(name, field), {**known, **ROWS[name].base}[field]
            assert values, f"{name}.{field} of {system} has no value other than its default"
            assert not any(value is usual for value in values), f"{name}.{field}"


@pytest.mark.every_case
@pytest.mark.parametrize("name", thorough_but(CLASSES, *{*CLASSES} - {"GhostBatchNorm"}))
def test_every_field(name: str) -> None:
    """Output and variables match the function, and every field changes something."""
    with loose():  # for Flax's layers
        found = compiled(lambda x: seen_of(name, x), X)
    for label, case in cases_of(name).items():
        tolerance = ROWS[name].tolerance
        if case.fields.get("dtype") == BF16 and tolerance > 1e-6:
            tolerance = 2**-7  # one rounding of bfloat16
        for system in systems_with(name, *case.fields):
            differs = False
            for mode, ours in found[label][system].items():
                expected = found[label]["expected"][mode]
                versus = found[case.versus][system].get(mode, ours)
                try:
                    assert_close((ours.y, ours.after), (expected.y, expected.after), tolerance)
                    if case.field:
                        check_initial(name, case, ours.initial, versus.initial)
                except AssertionError as error:
                    raise AssertionError(f"{system}.{name}, {label}, in {mode}") from error
                differs |= is_unlike(ours, versus)
            if label != "base" and case.field not in MODES:
                assert differs != is_idle(name, case.field), f"{system}.{name}, {label}"


def is_unlike(a: Any, b: Any) -> bool:
    """Whether two trees differ in any way."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return True
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(p.dtype != q.dtype or not np.array_equal(p, q, equal_nan=True) for p, q in pairs)


def check_initial(name: str, case: Case, initial: Variables, versus: Variables) -> None:
    """Checks the values, names and dtypes of initial variables against a field."""
    field, value = case.field, case.fields.get(case.field)
    what = field.removeprefix("use_").removesuffix("_init")
    if field.endswith("_init") and value is not None:
        named = [n for n in initial if n.split("/")[-1] in (what, f"query_{what}", f"key_{what}")]
        named = named if not is_wrapper(name) else [n for n in named if "/" in n]
        assert named
        for n in named:
            np.testing.assert_allclose(initial[n], start(KEY, initial[n].shape), rtol=1e-6)
    elif field in ("use_scale", "use_key_scale", "use_bias", "use_threshold", "use_gain"):
        changed = initial.keys() ^ versus.keys()
        assert changed and all(n.endswith(what) for n in changed)
    both = initial.keys() & versus.keys()
    changed = {n for n in both if initial[n].dtype != versus[n].dtype}
    state = {"mean", "var", "matrix", "count", "remainder", "steps"} & both
    if field == "force_float32_reductions" and not is_idle(name, field):
        assert changed == {"mean", "var"} and all(initial[n].dtype == BF16 for n in changed)
    elif field == "param_dtype" and not is_idle(name, field):
        assert changed == ({n for n in both if "/" in n} if is_wrapper(name) else both - state)
        assert all(initial[n].dtype == BF16 for n in changed)
    else:
        assert not changed


@pytest.mark.parametrize(("name", "field"), REFUSED)
def test_refused(name: str, field: str) -> None:
    """Both systems raise the expected error."""
    value, message = REFUSED[name, field]
    fields = dict(ROWS[name].base) | ({} if field == "mask" else {field: value})
    call = {"use_running_average": False, **({"mask": value} if field == "mask" else {})}
    after = after_of(name, fields, len(X))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: made("linen", name, fields).init(KEY, X, *after, **call))
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: made("nnx", name, fields)(X, *after, **call))


# --- devices ---------------------------------------------------------------------------------------

SHARING = [name for name in CLASSES if "axis_name" in fields_of("linen", name)]
XS = jnp.stack([normal(X.shape, seed=10 + i) * (1 + i) + i for i in range(DEVICES)])
TRAIN: dict[str, Fields] = {"training": {"use_running_average": False}}
OVER: dict[str, Fields] = {
    "alone": {},
    "all": {"axis_name": "devices"},
    "groups": {"axis_name": "devices", "axis_index_groups": GROUPS},
}


def over_of(name: str) -> dict[str, Fields]:
    """Fields for each choice of devices; virtual batches exclude groups."""
    base = dict(ROWS[name].base)
    found = {label: base | devices for label, devices in OVER.items()}
    if (name, "axis_index_groups") in REFUSED:
        del found["groups"]
    elif name == "GhostBatchNorm":
        found["groups"] |= {"virtual_batch_size": None}
    return found


def on_devices(name: str, xs: jax.Array) -> dict[str, dict[str, Any]]:
    """For each choice of devices, the results of modules and function on each, and of the whole batch."""
    begin = by_name(
        made("linen", name, dict(ROWS[name].base)).init(
            KEY, xs[0], *after_of(name, dict(ROWS[name].base), len(X)), use_running_average=False
        )
    )
    found: dict[str, dict[str, Any]] = {}
    for label, fields in over_of(name).items():
        examples = after_of(name, fields, DEVICES * len(X))
        parts = tuple(a.reshape(DEVICES, -1, *a.shape[1:]) if a.ndim else a for a in examples)
        axes = (0, tuple(0 if a.ndim else None for a in examples))

        def linen(x: Any, after: Any, fields: Fields = fields) -> Any:
            return in_linen(name, fields, x, after, TRAIN)["training"][1:]

        def nnx_(x: Any, after: Any, fields: Fields = fields) -> Any:
            return in_nnx(name, fields, x, after, TRAIN, begin)["training"][1:]

        def expected(x: Any, after: Any, fields: Fields = fields) -> Any:
            question = asked(name, x, after, begin, fields)
            y, updated = ROWS[name].reference(question)
            return y, question.variables | updated

        found[label] = {
            what: jax.vmap(f, axes, axis_name="devices")(xs, parts)
            for what, f in (("linen", linen), ("nnx", nnx_), ("expected", expected))
        }
        if label != "alone":
            groups = fields.get("axis_index_groups") or [[*range(DEVICES)]]
            found[label]["whole"] = [together(name, xs, examples, begin, fields, g) for g in groups]
    return found


def together(
    name: str, xs: Any, examples: Any, begin: Variables, fields: Fields, group: list[int]
) -> Any:
    """Runs the function on all data of a group on one device; returns y for each device and the variables."""
    axis, own = ROWS[name].split, {"axis_name": None, "axis_index_groups": None}
    x = jnp.concatenate([xs[i] for i in group], axis)
    first, last = group[0] * len(X), (group[-1] + 1) * len(X)
    after = tuple(a[first:last] if a.ndim else a for a in examples)
    question = asked(name, x, after, begin, fields | own)
    if axis == -1:  # each device has the parameters of its own features
        tiled = {n: jnp.tile(v, len(group)) for n, v in question.variables.items() if v.ndim}
        question = question._replace(variables=question.variables | tiled)
    y, updated = ROWS[name].reference(question)
    return jnp.split(y, len(group), axis), updated


@pytest.mark.parametrize("name", thorough_but(SHARING, *ACTIVATIONS, "BatchRenorm"))
def test_devices(name: str) -> None:
    """With ``axis_name`` and groups, modules match the function on devices, and on the whole batch."""
    found = compiled(lambda xs: on_devices(name, xs), XS)
    for label, seen in found.items():
        for system in SYSTEMS:
            assert_close(seen[system], seen["expected"], ROWS[name].tolerance)
            assert is_unlike(seen[system], found["alone"][system]) == (label != "alone")
    for label, seen in found.items():
        groups = GROUPS if label == "groups" else [[*range(DEVICES)]]
        for group, (ys, updated) in zip(groups, seen.get("whole", ()), strict=label != "alone"):
            for device, y in zip(group, ys, strict=True):
                ours = jax.tree.map(lambda a, device=device: a[device], seen["expected"])
                assert_close(ours[0], y, 1e-4)
                assert_close({n: ours[1][n] for n in updated}, updated, 1e-4)


# --- effects that outputs do not show ------------------------------------------------------------


@pytest.mark.parametrize("name", ["BatchNorm", "GhostBatchNorm"])
def test_what_is_saved(name: str) -> None:
    """``save_as`` has the same effect as in the function, and only on the gradient."""
    fields = {"save_as": BF16, "virtual_batch_size": None}
    layer, plain_layer = (made("linen", name, fields | more) for more in ({}, {"save_as": None}))

    def gradients(x: jax.Array) -> Any:
        variables = layer.init(KEY, x, use_running_average=False)
        module, stats = made("nnx", name, fields), jn.init_running_stats(X.shape[-1])
        scale, bias = (variables["params"][n] for n in ("scale", "bias"))

        def loss(f: Callable[[Any], Any]) -> Any:
            return jax.grad(lambda x: (f(x) * normal(X.shape, seed=2)).sum())(x)

        def applied(layer: Any) -> Any:
            call = {"use_running_average": False, "mutable": ["batch_stats"]}
            return loss(lambda x: layer.apply(variables, x, **call)[0])

        return {
            "linen": applied(layer),
            "nnx": loss(lambda x: nnx.clone(module)(x, use_running_average=False)),
            "expected": loss(lambda x: jn.batch_norm(x, stats, scale, bias, save_as=BF16)[0]),
            "all of x": applied(plain_layer),
        }

    found = compiled(gradients, X)
    for system in SYSTEMS:
        assert_close(found[system], found["expected"], 1e-6)
        assert is_unlike(found[system], found["all of x"])


@pytest.mark.parametrize("name", [*ACTIVATIONS, "GhostBatchNorm"])
def test_metadata(name: str) -> None:
    """Metadata of scale and bias reach their own variable only."""
    known = [n for n in fields_of("nnx", name) if n.endswith("_metadata")]
    fields = dict(ROWS[name].base) | {n: {"said": n} for n in known}
    module = made("nnx", name, fields)
    assert known
    for field in known:
        variable = getattr(module, field.removesuffix("_metadata"))
        assert variable.get_metadata()["said"] == field


@pytest.mark.parametrize("name", ["RMSNorm", "AddRMSNorm"])
def test_scale_after_cast(name: str) -> None:
    """With ``scale_after_cast``, both round as the function does."""
    fields: Fields = {"scale_after_cast": True, "param_dtype": BF16, "scale_init": start}
    function: Any = jn.rms_norm if name == "RMSNorm" else jn.add_rms_norm

    def run(*args: jax.Array) -> Any:
        layer, module = (made(system, name, fields) for system in SYSTEMS)
        scale = start(KEY, X.shape[-1:], BF16)
        expected, usual = (
            function(*args, scale, scale_after_cast=after) for after in (True, False)
        )
        return [layer.init_with_output(KEY, *args)[0], module(*args)], expected, usual

    args = (X, X[::-1])[: 1 if name == "RMSNorm" else 2]
    found, expected, usual = compiled(run, *(a.astype(BF16) for a in args))
    for y in found:
        assert_equal(y, expected)
    assert is_unlike(expected, usual)


def test_where_spectral_norm_keeps_its_state() -> None:
    """The state is stored in the given collection."""
    layer = made("linen", "SpectralNorm", {"collection_name": "other"})
    with loose():
        found = jax.eval_shape(lambda: layer.init(KEY, X, use_running_average=False))
    assert set(found) == {"params", "other"}
    assert set(by_name(found["other"])) == {"kernel/u", "kernel/sigma"}


@pytest.mark.parametrize("refused", [True, False])
def test_a_convolution_is_no_matrix(refused: bool) -> None:
    """With ``error_on_non_matrix`` a convolution's kernel is refused; without, it is normalized."""
    rngs = nnx.Rngs(0)
    layer: Any = jnl.SpectralNorm(nn.Conv(3, (2, 2)), error_on_non_matrix=refused)

    def in_linen() -> Any:
        return jax.eval_shape(lambda: layer.init(KEY, X, use_running_average=False))

    def in_nnx() -> Any:
        conv = nnx.Conv(8, 3, (2, 2), rngs=rngs)
        return jnx.SpectralNorm(conv, error_on_non_matrix=refused, rngs=rngs)

    with loose():
        for make in (in_linen, in_nnx):
            if refused:
                with pytest.raises(ValueError, match="error_on_non_matrix is True"):
                    make()
            else:
                assert any("sigma" in n for n in (by_name(in_linen()), variables_of(in_nnx()))[0])


def test_frozen_batch_norm_is_no_function_of_its_variables() -> None:
    """Variables of frozen batch norm get no gradient, and x gets the constant scale as gradient."""

    def gradients(x: jax.Array) -> Any:
        layer, module = (made(system, "FrozenBatchNorm", {}) for system in SYSTEMS)
        variables = jax.tree.map(unlike, layer.init(KEY, x))
        for name, value in by_name(variables).items():
            variables_of(module)[name][...] = value
        graph, state = nnx.split(module)

        def of_linen(variables: Any, x: Any) -> Any:
            return (layer.apply(variables, x) * normal(X.shape, seed=2)).sum()

        def of_nnx(state: Any, x: Any) -> Any:
            return (nnx.merge(graph, state)(x) * normal(X.shape, seed=2)).sum()

        scale, var = (variables["batch_stats"][n] for n in ("scale", "var"))
        slope = (scale / jnp.sqrt(var + 1e-5)).reshape(1, 1, 1, -1) * normal(X.shape, seed=2)
        found = jax.grad(of_linen, (0, 1))(variables, x), jax.grad(of_nnx, (0, 1))(state, x)
        return [(jax.tree.leaves(variables), given) for variables, given in found], slope

    found, slope = compiled(gradients, X)
    for of_variables, of_x in found:
        assert len(of_variables) == 4 and not any(map(np.any, of_variables))
        np.testing.assert_allclose(of_x, slope, rtol=1e-5)


def test_a_domain_that_is_none() -> None:
    """A static domain out of range raises; a traced one gives NaN in evaluation and updates no statistics."""
    fields: Fields = {"num_domains": 2}
    layer = made("linen", "DomainBatchNorm", fields)
    train, evaluate = ({"use_running_average": flag} for flag in (False, True))
    wrong = (-1, -2, 2)
    for domain in wrong:
        with pytest.raises(ValueError, match=r"domain must lie in \[0, 1\]"):
            jax.eval_shape(lambda domain=domain: layer.init(KEY, X, domain, **train))
        with pytest.raises(ValueError, match=r"domain must lie in \[0, 1\]"):
            made("nnx", "DomainBatchNorm", fields)(X, domain, **train)

    def run(domain: jax.Array) -> Any:
        variables = layer.init(KEY, X, domain, **train)
        _, updated = layer.apply(variables, X, domain, **train, mutable=["batch_stats"])
        module = made("nnx", "DomainBatchNorm", fields)
        module(X, domain, **train)
        in_nnx = {n: variable[...] for n, variable in variables_of(module).items()}
        evaluated = layer.apply(variables, X, domain, **evaluate), module(X, domain, **evaluate)
        return by_name(variables), by_name({**variables, **updated}), in_nnx, evaluated

    before, *after, evaluated = compiled(jax.vmap(run), jnp.array(wrong))
    assert not any(is_unlike(variables, before) for variables in after)
    assert all(np.isnan(y).all() for y in evaluated)


def test_weight_norm_without_an_initializer_begins_with_the_lengths() -> None:
    """The scale starts with the kernel's lengths, so wrapping a layer does not change its output."""
    fields: Fields = {"scale_init": None}

    def run(x: jax.Array) -> Any:
        layer, module = (made(system, "WeightNorm", fields) for system in SYSTEMS)
        in_nnx = {n: variable[...] for n, variable in variables_of(module).items()}
        return by_name(layer.init(KEY, x)), in_nnx

    with loose():
        for found in compiled(run, X):
            lengths = np.linalg.norm(found["kernel"], axis=0)
            np.testing.assert_allclose(found["kernel/scale"], lengths, rtol=1e-5)
