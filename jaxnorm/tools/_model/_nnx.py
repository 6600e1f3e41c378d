"""An NNX model, in the form that the tools use."""

import contextlib
import copy
import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from ...core._running import RunningStats
from ...norms._shared._running_norm import RunningNorm
from ._intercept import Answer, Watched, answered_by, new_number, traced_for, watched
from ._interface import Run, Stats
from ._meaning import meaning_of
from ._norms import is_norm, running_norm
from ._types import Batch, Tree


class NnxModel:
    """A `Model` for an NNX model."""

    def __init__(self, model: nnx.Module, is_watched: Watched) -> None:
        self._model: Any = model
        self._graph, self.state = nnx.split(watched(model, is_watched))

    def bare(self) -> "NnxModel":
        bare = copy.copy(self)
        bare._model = bare.state = None
        vars(bare).pop("_layers", None)
        return bare

    def meaning(self) -> Hashable:
        nodes = [node for _, node in nnx.iter_graph(self._model)]
        return self._graph, *(_meaning(node) for node in nodes if isinstance(node, nnx.Module))

    def keys(self, number: jax.Array | int | None = None) -> Any:
        return number  # the model holds its keys, which are changed by it

    def paths(self) -> list[str]:
        layers = self._layers.items()
        return [path for path, layer in layers if getattr(layer, "mean", None) is not None]

    def stats(self, path: str) -> dict[str, jax.Array]:
        return self._held(path, RunningStats._fields)

    def params(self, path: str) -> dict[str, jax.Array]:
        return self._held(path, ("scale", "bias"))

    def norm(self, path: str, traced: RunningNorm | None) -> RunningNorm | None:
        return None if traced is None else running_norm(self._layers[path])

    @functools.cached_property
    def _layers(self) -> Mapping[str, Any]:
        """The layers by path, with the model's own variables, which are only read here."""
        return _layers(nnx.merge(self._graph, self.state))

    def _held(self, path: str, names: Sequence[str]) -> dict[str, jax.Array]:
        held = {name: getattr(self._layers[path], name, None) for name in names}
        # Not what else may have the name: an option or another layer.
        return {name: v[...] for name, v in held.items() if isinstance(v, nnx.Variable)}

    def run(
        self,
        state: Tree,
        stats: Stats,
        run: Run,
        batch: Batch,
        answer: Answer,
        keys: Any = None,
    ) -> tuple[Any, Stats, Any]:
        # Use copies: the variables in the state belong to the caller.
        model = nnx.merge(self._graph, state, copy=True)
        layers = _layers(model)
        for path, arrays in stats.items():
            for name, array in arrays.items():
                setattr(layers[path], name, nnx.BatchStat(array))
        with _drawing(model, keys), answered_by(answer), traced_for(new_number()):
            output = run(model, batch)
        of_layers = {
            path: {name: getattr(layers[path], name)[...] for name in arrays}
            for path, arrays in stats.items()
        }
        before = dict(nnx.to_flat_state(state))
        after = [(at, leaf) for at, leaf in nnx.to_flat_state(nnx.state(model)) if at in before]
        return output, of_layers, nnx.from_flat_state(after)

    def split(self, state: Tree) -> tuple[Any, Any]:
        params, rest = nnx.split_state(state, nnx.Param, ...)
        return params, rest

    def join(self, params: Tree, rest: Tree) -> Any:
        return nnx.merge_state(params, rest)

    def returned(self, stats: Stats) -> Any:
        model = nnx.clone(self._model)
        _write(_layers(watched(model, is_norm)), stats)  # shares the variables
        return model

    def as_given(self, collections: Tree) -> Any:
        return collections

    def with_stats(self, state: Tree, stats: Stats) -> Any:
        model = nnx.merge(self._graph, state)
        _write(_layers(model), stats)
        return nnx.state(model)


def _meaning(module: nnx.Module) -> Hashable:
    """The meaning of a module's class and of its own attributes; the graph has its parts."""
    static = {
        name: value
        for name, value in vars(module).items()
        if not (name.startswith("_pytree_") or isinstance(value, nnx.Variable | nnx.Pytree))
    }
    return meaning_of(type(module)), *((n, meaning_of(v)) for n, v in static.items())


@contextlib.contextmanager
def _drawing(model: nnx.Module, number: jax.Array | None) -> Iterator[None]:
    """Makes ``model`` draw different random numbers for every ``number``, then restores its keys."""
    if number is None:
        yield
        return
    variables = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.RngKey)]
    keys = [variable[...] for variable in variables]
    for variable, key in zip(variables, keys, strict=True):
        variable[...] = jax.random.fold_in(key, number)
    yield
    for variable, key in zip(variables, keys, strict=True):
        variable[...] = key


def _write(layers: Mapping[str, Any], stats: Stats) -> None:
    for path, arrays in stats.items():
        for name, array in arrays.items():
            getattr(layers[path], name)[...] = array


def _layers(model: nnx.Module) -> dict[str, Any]:
    """The watched layers by path."""
    nodes = (node for _, node in nnx.iter_graph(model) if hasattr(node, "watched_path"))
    return {node.watched_path: node for node in nodes}
