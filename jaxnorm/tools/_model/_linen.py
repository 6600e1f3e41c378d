"""A Linen module and its variables, in the form that the tools use."""

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import DenyList, freeze, unfreeze
from flax.core.frozen_dict import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from ...core._running import RunningStats
from ...norms._shared._running_norm import RunningNorm
from ._intercept import Answer, Watched, new_number, traced_for, watching
from ._interface import Run, Stats, split_path
from ._meaning import meaning_of
from ._types import Batch, Layer, Rngs, Tree


class LinenModel:
    """A `Model` for a Linen module."""

    def __init__(
        self,
        module: nn.Module,
        variables: Tree,
        rngs: Rngs | None,
        is_watched: Watched,
        *,
        evaluates: bool,
    ) -> None:
        self._mutable = DenyList("batch_stats") if evaluates else True
        self._module, self._rngs, self._is_watched = module, rngs, is_watched
        self._given = variables
        self.state: Tree = {name: unfreeze(collection) for name, collection in variables.items()}

    def bare(self) -> "LinenModel":
        bare = copy.copy(self)
        bare._given = bare.state = bare._rngs = None
        return bare

    def meaning(self) -> Hashable:
        return meaning_of(self._module), self._is_watched, repr(self._mutable)

    def keys(self, number: jax.Array | int | None = None) -> Any:
        if number is None:
            return self._rngs
        return jax.tree.map(lambda key: jax.random.fold_in(key, number), self._rngs)

    def _watches(self, layer: Layer, path: str) -> bool:
        return self._is_watched(layer)

    def paths(self) -> list[str]:
        names = flatten_dict(self.state.get("batch_stats", {}))
        return ["/".join(path) for *path, last in names if last == "mean"]

    def stats(self, path: str) -> dict[str, jax.Array]:
        held = _arrays(_below(self.state.get("batch_stats", {}), path))
        return {name: held[name] for name in RunningStats._fields if name in held}

    def params(self, path: str) -> dict[str, jax.Array]:
        return nn.meta.unbox(_arrays(_below(self.state.get("params", {}), path)))

    def norm(self, path: str, traced: RunningNorm | None) -> RunningNorm | None:
        return traced  # options are fields of the module, not arrays of its state

    def run(
        self,
        state: Tree,
        stats: Stats,
        run: Run,
        batch: Batch,
        answer: Answer,
        keys: Any = None,
    ) -> tuple[Any, Stats, Any]:
        apply = nn.apply(run, self._module, mutable=self._mutable)
        with watching(self._watches, answer), traced_for(new_number()):
            output, after = apply(self.with_stats(state, stats), batch, rngs=keys)
        found = {path: _below(after.get("batch_stats", {}), path) for path in stats}
        of_layers = {path: {name: found[path][name] for name in stats[path]} for path in stats}
        return output, of_layers, _as_in(state, after)

    def split(self, state: Tree) -> tuple[Any, Any]:
        rest = {name: collection for name, collection in state.items() if name != "params"}
        return state.get("params", {}), rest

    def join(self, params: Tree, rest: Tree) -> Any:
        return {**rest, "params": params} if params else rest

    def with_stats(self, state: Tree, stats: Stats) -> Any:
        flat = flatten_dict(state.get("batch_stats", {}))
        for path, arrays in stats.items():
            flat |= {(*split_path(path), name): array for name, array in arrays.items()}
        return {**state, "batch_stats": unflatten_dict(flat)} if flat else state

    def returned(self, stats: Stats) -> Any:
        return self.as_given(self.with_stats(self.state, stats))

    def as_given(self, collections: Tree) -> Any:
        given = {
            name: freeze(tree) if isinstance(self._given.get(name), FrozenDict) else tree
            for name, tree in collections.items()
        }
        return freeze(given) if isinstance(self._given, FrozenDict) else given


def _as_in(before: Tree, after: Tree) -> Any:
    """``before`` with the values of ``after``; entries that ``after`` added are left out."""
    if not isinstance(before, Mapping):
        return after
    return {
        name: _as_in(old, after[name]) if name in after else old for name, old in before.items()
    }


def _below(tree: Tree, path: str) -> dict[str, Any]:
    for name in split_path(path):
        tree = tree.get(name, {})
    return dict(tree)


def _arrays(tree: Tree) -> dict[str, jax.Array]:
    """The arrays of a layer itself, without those of its children."""
    return {name: held for name, held in tree.items() if not isinstance(held, Mapping)}
