"""Compiles what a tool runs once for all of its calls with the same model and the same ``run``.

A compiled program has the values of its time, so it is used again only if nothing that the code of the model
and of ``run`` reads can have changed: its `meaning` is the same.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from ._interface import Model, Run
from ._meaning import Changeable, meaning_of

_Made = TypeVar("_Made")


class _Key(NamedTuple):
    """A model without arrays and a function, equal to another pair with the same ``meaning``."""

    model: Model
    run: Run
    meaning: Hashable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.meaning == other.meaning

    def __hash__(self) -> int:
        return hash(self.meaning)


def reused(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """Wraps ``make(model, run, *options)``, so that equal arguments give the same result again.

    Results of the last few calls are kept, without the arrays of their models.
    """

    @functools.lru_cache(maxsize=8)
    def kept(key: _Key, *options: Hashable) -> _Made:
        return make(key.model, key.run, *options)

    @functools.wraps(make)
    def made(model: Model, run: Run, *options: Any) -> _Made:
        try:
            meaning = model.meaning(), meaning_of(run)
            hash(meaning)
        except (Changeable, TypeError):  # a TypeError if something has no hash
            return make(model.bare(), run, *options)
        return kept(_Key(model.bare(), run, meaning), *options)

    return made
