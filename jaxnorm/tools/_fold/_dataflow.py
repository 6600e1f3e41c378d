"""Follows the values of layers through a model's computation: what computes them, and what reads them."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from ...core._jax import jaxprs_in
from .._model._intercept import LayerCall
from .._model._interface import Model, Run
from .._model._types import Batch, Layer, Tree

_MARK = "jaxnorm.fold"
COLLECTIONS = ("params", "batch_stats")
# Equations of these primitives are followed into the function that they call, argument by argument.
_CALLS = {"jit", "pjit", "remat", "remat2", "checkpoint", "closed_call", "core_call"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call"}
# Primitives that only move values, and primitives that take the largest of several.
_MOVES = {"slice", "reshape", "squeeze", "convert_element_type", "name", "copy", "copy_p"}
_MOVES |= {"sharding_constraint"}
LARGEST = {"max", "reduce_max", "reduce_window_max"}


class Origin(NamedTuple):
    """The output of a layer, possibly moved since then, with its channels still last."""

    path: str
    features: int  # how many of the last axes are channels
    through: frozenset[str] = frozenset()  # the primitives it went through


class Leaf(NamedTuple):
    """An array of the layer at ``path``."""

    path: str
    name: str


Value: TypeAlias = Origin | Leaf | str
"""Where a value comes from. A string names a primitive or describes another source."""


class Seen(NamedTuple):
    """A layer as it was called."""

    call: LayerCall
    x: tuple[int, ...]  # shape of the input
    y: tuple[int, ...]
    dtype: Any  # of the output


@dataclasses.dataclass
class Flow:
    """What is known about the layers of a model, by path."""

    seen: dict[str, Seen] = dataclasses.field(default_factory=dict)
    held: dict[Leaf, Any] = dataclasses.field(default_factory=dict)
    calls: dict[str, int] = dataclasses.field(default_factory=collections.Counter)
    inputs: dict[str, Value] = dataclasses.field(default_factory=dict)
    # What reads the output of a layer: other layers, as their input, and primitives.
    layers_after: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    others_after: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    # The layers in which an array of the model is read; None means outside all layers.
    leaf_read_in: dict[Leaf, set[str | None]] = dataclasses.field(default_factory=dict)
    within: dict[str, str] = dataclasses.field(default_factory=dict)  # such as "scan" or "vmap"

    def arrays(self, path: str) -> dict[str, Any]:
        """The arrays of the layer at ``path``."""
        return {leaf.name: array for leaf, array in self.held.items() if leaf.path == path}


def follow(model: Model, run: Run, batch: Batch) -> Flow:
    """Follows the outputs of all layers that ``model`` watches through the computation of ``run``.

    The computation is traced with marks on the input and output of each layer; then the equations are read
    in order. This assumes nothing about how the model is written.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(model.state)
    names = [
        _leaf(path, in_collections=not isinstance(model.state, nnx.State)) for path, _ in leaves
    ]
    flow = Flow(held={name: array for name, (_, array) in zip(names, leaves, strict=True)})

    def marked(call: LayerCall) -> Any:
        if not call.args:  # a layer without an input
            return call.proceed(**call.kwargs)
        x = checkpoint_name(call.x, f"{_MARK} in {call.path}")
        y = call.proceed(x, *call.args[1:], **call.kwargs)
        flow.seen[call.path] = Seen(call, x.shape, y.shape, y.dtype)
        return checkpoint_name(y, f"{_MARK} out {call.path}")

    def output(state: Tree, batch: Batch) -> Any:
        return model.run(state, {}, run, batch, marked, model.keys())[0]

    jaxpr = jax.make_jaxpr(output)(model.state, batch).jaxpr
    of_batch = ["the batch"] * (len(jaxpr.invars) - len(names))
    reader = _Reader(flow)
    for value in reader.read_through(jaxpr, [*names, *of_batch]):
        reader.note_use(value, "the output of the model")
    return flow


def _leaf(keys: Sequence[Any], *, in_collections: bool) -> Leaf:
    names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys]
    if isinstance(keys[-1], jax.tree_util.GetAttrKey):  # of a variable or a box around an array
        names.pop()
    collection = names.pop(0) if in_collections else "params"
    path = "/".join(names[:-1])
    # Layers compute with these two; another collection may use the same names, such as a mask of the kernel.
    return Leaf(path if collection in COLLECTIONS else f"{collection} {path}", names[-1])


class _Reader:
    """Reads equations in the order in which they were traced."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.inside: str | None = None  # the layer whose own equations are being read

    def read_through(self, jaxpr: core.Jaxpr, arguments: Sequence[Value]) -> list[Value]:
        """The sources of the outputs of ``jaxpr``, given the sources of its ``arguments``."""
        known = dict(zip(jaxpr.invars, arguments, strict=True))

        def value(atom: Any) -> Value:
            return "a constant" if isinstance(atom, core.Literal) else known.get(atom, "a constant")

        for eqn in jaxpr.eqns:
            results = self.results_of(eqn, [value(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def results_of(self, eqn: Any, values: list[Value]) -> Sequence[Value]:
        """The sources of the results of an equation. Records what reads which value."""
        name = eqn.primitive.name
        if (mark := _mark(eqn)) is not None:
            return [self.at_mark(*mark, eqn.invars[0].aval.shape, values[0])]
        inner = jaxprs_in(eqn.params)
        if name in _CALLS and len(inner) == 1 and len(inner[0].invars) == len(values):
            return self.read_through(inner[0], values)
        moved = _moved(eqn, values)
        if moved is not None:
            return [moved]
        for value in values:
            self.note_use(value, name)
        for jaxpr in inner:
            self.note_hidden(jaxpr, name)
        return [name] * len(eqn.outvars)

    def at_mark(self, role: str, path: str, shape: tuple[int, ...], value: Value) -> Value:
        """Handles the mark where a layer begins or ends."""
        flow, seen = self.flow, self.flow.seen[path]
        if role == "out":
            self.inside = None
            return Origin(path, n_features(seen.call.layer))
        self.inside = path
        flow.calls[path] = flow.calls.get(path, 0) + 1
        flow.inputs[path] = value
        if len(shape) != len(seen.x):
            flow.within[path] = "vmap"
        if isinstance(value, Origin):
            flow.layers_after.setdefault(value.path, set()).add(path)
        elif isinstance(value, Leaf):
            self.note_use(value, path)
        return f"the input of {path}"

    def note_use(self, value: Value, by: str) -> None:
        """Records that something reads ``value``, but not as the input of a layer."""
        if isinstance(value, Origin):
            by = by if self.inside is None else f"another argument of {self.inside}"
            self.flow.others_after.setdefault(value.path, set()).add(by)
        elif isinstance(value, Leaf):
            self.flow.leaf_read_in.setdefault(value, set()).add(self.inside)

    def note_hidden(self, jaxpr: core.Jaxpr, by: str) -> None:
        """Records the layers in a function that is not followed, such as the body of a loop."""
        for eqn in jaxpr.eqns:
            if (mark := _mark(eqn)) is not None:
                self.flow.within[mark[1]] = by
            for inner in jaxprs_in(eqn.params):
                self.note_hidden(inner, by)


def n_features(layer: Layer) -> int:
    """How many of the last axes of a layer's output are channels."""
    features = getattr(layer, "out_features", getattr(layer, "features", 1))
    return len(features) if isinstance(features, Sequence) else 1


def _mark(eqn: Any) -> tuple[str, str] | None:
    """The role and the path of the mark, or None if the equation is not a mark."""
    if eqn.primitive.name != "name" or not eqn.params["name"].startswith(_MARK):
        return None
    role, _, path = eqn.params["name"].removeprefix(f"{_MARK} ").partition(" ")
    return role, path


def _moved(eqn: Any, values: list[Value]) -> Origin | None:
    """The origin of the result of ``eqn``, if it only moves values of one layer within their channels."""
    name, origins = eqn.primitive.name, [v for v in values if isinstance(v, Origin)]
    if name not in _MOVES | LARGEST or len(origins) != len(values):
        return None
    if len({(origin.path, origin.features) for origin in origins}) != 1:
        return None
    path, features, _ = origins[0]
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    touched = [*(eqn.params.get("axes") or ()), *(eqn.params.get("dimensions") or ())]
    if before.shape[-features:] != after.shape[-features:]:
        return None
    if any(axis >= before.ndim - features for axis in touched):
        return None
    if any(n != 1 for n in eqn.params.get("window_dimensions", ())[-features:]):
        return None
    if not jnp.issubdtype(after.dtype, jnp.inexact):
        return None
    return Origin(path, features, frozenset({name}).union(*(o.through for o in origins)))
