"""A Linen module and its variables, or an NNX model: for the tools, which are written once, the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import flax.linen as nn
import jax
from flax import nnx
from flax.core import freeze, unfreeze
from flax.core.frozen_dict import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from ..core._running import RunningStats
from ._watch import (
    LINEN_BATCH_NORMS,
    NNX_BATCH_NORMS,
    Answer,
    answered_first_by,
    new_number,
    traced_for,
    watched,
    watching,
)

Run: TypeAlias = Callable[[Any, Any], Any]
"""How a model is run on a batch: ``lambda model, batch: model(batch["image"], train=False)``."""

Stats: TypeAlias = Mapping[str, Mapping[str, jax.Array]]
"""Arrays of layers, by the path of the layer and their name."""

Kinds: TypeAlias = tuple[type, ...]
BATCH_NORMS: Kinds = (*LINEN_BATCH_NORMS, *NNX_BATCH_NORMS)


class Model(Protocol):
    """A model, and in ``state`` all the arrays that it holds."""

    state: Any

    def paths(self) -> list[str]:
        """The layers with running statistics."""
        ...

    def stats(self, path: str) -> dict[str, jax.Array]:
        """What the layer at ``path`` holds in ``batch_stats``."""
        ...

    def params(self, path: str) -> dict[str, jax.Array]:
        """The scale and the bias of the layer at ``path``, if it has them."""
        ...

    def run(
        self, state: Any, stats: Stats, run: Run, batch: Any, answer: Answer
    ) -> tuple[Any, Stats, Any]:
        """What ``run`` returns, and ``stats`` and ``state`` afterwards.

        The model holds ``state``, and its layers these ``stats`` in the place of their own, or besides. For
        its batch norms, or layers of the kinds it was made for, ``answer`` says what they return and write.
        """
        ...

    def split(self, state: Any) -> tuple[Any, Any]:
        """The trained parameters in ``state``, and the rest of it."""
        ...

    def join(self, params: Any, rest: Any) -> Any:
        """``state`` again."""
        ...

    def with_stats(self, state: Any, stats: Stats) -> Any:
        """``state`` with these arrays in ``batch_stats``."""
        ...

    def returned(self, stats: Stats) -> Any:
        """What was given, variables or NNX model, with these ``stats``."""
        ...

    def as_given(self, collections: Any) -> Any:
        """Collections of Linen, each as the kind of mapping that was given: some are a FrozenDict."""
        ...


def as_it_is(model: Any, batch: Any) -> Any:
    """How a model is run if nobody says."""
    return model(batch)


def model_of(model: Any, variables: Any, rngs: Any = None, kinds: Kinds = BATCH_NORMS) -> Model:
    """``model`` as the tools see it, which watch its layers of these ``kinds``.

    Raises:
        ValueError: it is no model of Flax, or ``variables`` are missing, or given where there are none.
    """
    if isinstance(model, nnx.Module):
        if variables is not None:
            raise ValueError(
                f"variables belong to a Linen module; got them with an NNX model, {type(model).__name__}, "
                f"which holds its own. Leave them out."
            )
        return _NnxModel(model, kinds)
    check_model(model)
    if not isinstance(variables, Mapping) or not {"params", "batch_stats"} & set(variables):
        what = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f"variables must be those of the Linen module, in the collections it has; got {what}. "
            f'Give variables={{"params": ..., "batch_stats": ...}}, as init returns them.'
        )
    return _LinenModel(model, variables, rngs, kinds)


def check_model(model: Any) -> None:
    """Whether ``model`` is one.

    Raises:
        ValueError: it is none of Flax.
    """
    if not isinstance(model, nn.Module | nnx.Module):
        raise ValueError(
            f"model must be a Linen module or an NNX model; got {type(model).__name__}. Give the module "
            f"itself, not its variables or its apply function."
        )


def names_of(path: str) -> tuple[str, ...]:
    """The keys on the way to a layer; that of the model itself has none."""
    return tuple(filter(None, path.split("/")))


class _LinenModel:
    def __init__(self, module: nn.Module, variables: Any, rngs: Any, kinds: Kinds) -> None:
        self._module, self._rngs, self._kinds = module, rngs, kinds
        self._given = variables
        self.state: Any = {name: unfreeze(collection) for name, collection in variables.items()}

    def paths(self) -> list[str]:
        names = flatten_dict(self.state.get("batch_stats", {}))
        return ["/".join(path) for *path, last in names if last == "var"]

    def stats(self, path: str) -> dict[str, jax.Array]:
        return _below(self.state.get("batch_stats", {}), path)

    def params(self, path: str) -> dict[str, jax.Array]:
        return _below(self.state.get("params", {}), path)

    def run(
        self, state: Any, stats: Stats, run: Run, batch: Any, answer: Answer
    ) -> tuple[Any, Stats, Any]:
        apply = nn.apply(run, self._module, mutable=True)
        with watching(self._kinds), answered_first_by(answer), traced_for(new_number()):
            output, after = apply(self.with_stats(state, stats), batch, rngs=self._rngs)
        found = {path: _below(after.get("batch_stats", {}), path) for path in stats}
        of_layers = {path: {name: found[path][name] for name in stats[path]} for path in stats}
        return output, of_layers, _as_in(state, after)

    def split(self, state: Any) -> tuple[Any, Any]:
        rest = {name: collection for name, collection in state.items() if name != "params"}
        return state.get("params", {}), rest

    def join(self, params: Any, rest: Any) -> Any:
        return {**rest, "params": params} if params else rest

    def with_stats(self, state: Any, stats: Stats) -> Any:
        flat = flatten_dict(state.get("batch_stats", {}))
        for path, arrays in stats.items():
            flat |= {(*names_of(path), name): array for name, array in arrays.items()}
        return {**state, "batch_stats": unflatten_dict(flat)} if flat else state

    def returned(self, stats: Stats) -> Any:
        return self.as_given(self.with_stats(self.state, stats))

    def as_given(self, collections: Any) -> Any:
        given = {
            name: freeze(tree) if isinstance(self._given.get(name), FrozenDict) else tree
            for name, tree in collections.items()
        }
        return freeze(given) if isinstance(self._given, FrozenDict) else given


def _as_in(before: Any, after: Any) -> Any:
    """What there was ``before``, as it is ``after``; without what came in addition."""
    if not isinstance(before, Mapping):
        return after
    return {
        name: _as_in(old, after[name]) if name in after else old for name, old in before.items()
    }


def _below(tree: Any, path: str) -> dict[str, jax.Array]:
    for name in names_of(path):
        tree = tree.get(name, {})
    return dict(tree)


class _NnxModel:
    def __init__(self, model: nnx.Module, kinds: Kinds) -> None:
        self._model = model
        self._graph, self.state = nnx.split(watched(model, kinds))

    def paths(self) -> list[str]:
        layers = _layers(nnx.merge(self._graph, self.state))
        return [path for path, layer in layers.items() if getattr(layer, "var", None) is not None]

    def stats(self, path: str) -> dict[str, jax.Array]:
        return self._held(path, RunningStats._fields)

    def params(self, path: str) -> dict[str, jax.Array]:
        return self._held(path, ("scale", "bias"))

    def _held(self, path: str, names: Sequence[str]) -> dict[str, jax.Array]:
        layer = _layers(nnx.merge(self._graph, self.state))[path]
        held = {name: getattr(layer, name, None) for name in names}
        return {name: variable[...] for name, variable in held.items() if variable is not None}

    def run(
        self, state: Any, stats: Stats, run: Run, batch: Any, answer: Answer
    ) -> tuple[Any, Stats, Any]:
        # Of copies: the variables of the state are the caller's.
        model = nnx.merge(self._graph, state, copy=True)
        layers = _layers(model)
        for path, arrays in stats.items():
            for name, array in arrays.items():
                setattr(layers[path], name, nnx.BatchStat(array))
        with answered_first_by(answer), traced_for(new_number()):
            output = run(model, batch)
        of_layers = {
            path: {name: getattr(layers[path], name)[...] for name in arrays}
            for path, arrays in stats.items()
        }
        before = dict(nnx.to_flat_state(state))
        after = [(at, leaf) for at, leaf in nnx.to_flat_state(nnx.state(model)) if at in before]
        return output, of_layers, nnx.from_flat_state(after)

    def split(self, state: Any) -> tuple[Any, Any]:
        params, rest = nnx.split_state(state, nnx.Param, ...)
        return params, rest

    def join(self, params: Any, rest: Any) -> Any:
        return nnx.merge_state(params, rest)

    def returned(self, stats: Stats) -> Any:
        model = nnx.clone(self._model)
        _write(_layers(watched(model, NNX_BATCH_NORMS)), stats)  # of the same variables
        return model

    def as_given(self, collections: Any) -> Any:
        return collections

    def with_stats(self, state: Any, stats: Stats) -> Any:
        model = nnx.merge(self._graph, state, copy=True)
        _write(_layers(model), stats)
        return nnx.state(model)


def _write(layers: Mapping[str, Any], stats: Stats) -> None:
    for path, arrays in stats.items():
        for name, array in arrays.items():
            getattr(layers[path], name)[...] = array


def _layers(model: nnx.Module) -> dict[str, Any]:
    """The watched layers by their path."""
    nodes = (node for _, node in nnx.iter_graph(model) if hasattr(node, "watched_path"))
    return {node.watched_path: node for node in nodes}
