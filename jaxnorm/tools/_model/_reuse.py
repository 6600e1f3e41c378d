"""Compiles what a tool runs once for all of its calls with the same model and the same ``run``."""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import numpy as np

from ._interface import Model, Run

_Made = TypeVar("_Made")
_FIXED = (ModuleType, type, BuiltinFunctionType, bool, int, float, complex, str, bytes, NoneType)
_FIXED += (nn.Module, np.dtype, np.generic, np.ufunc, jax.Array)


class _Same:
    """A value that is equal only to itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Run(NamedTuple):
    """A function, equal to another with the same ``meaning``."""

    function: Run
    meaning: Hashable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Run) and self.meaning == other.meaning

    def __hash__(self) -> int:
        return hash(self.meaning)


def reused(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """Wraps ``make(model, run, *options)``, so that equal arguments give the same result again.

    Results of the last few calls are kept, without the arrays of their models. As for `jax.jit`, a model's
    own code depends on nothing but its fields. ``run`` may read more: see `meaning_of`.
    """

    @functools.lru_cache(maxsize=8)
    def kept(model: Model, run: _Run, *options: Hashable) -> _Made:
        return make(model, run.function, *options)

    @functools.wraps(make)
    def made(model: Model, run: Run, *options: Any) -> _Made:
        model, meaning = model.bare(), meaning_of(run)
        if meaning is None:
            return make(model, run, *options)
        try:
            return kept(model, _Run(run, meaning), *options)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return make(model, run, *options)

    return made


def meaning_of(function: Any) -> tuple[Hashable, ...] | None:
    """The code of a function, and what it reads besides its arguments.

    None if it reads something that can change without anyone noticing, such as an NNX model or a dictionary.
    Functions of other packages than its own are taken for libraries, which do not change.
    """
    return _meaning(function, frozenset())


def _meaning(function: Any, seen: frozenset[Any]) -> tuple[Hashable, ...] | None:
    found: list[Hashable]
    if _package(function) == "jaxnorm":
        return (_Same(function),)
    if isinstance(function, functools.partial):
        values = [function.func, *function.args, *function.keywords.values()]
        found = [*function.keywords]
    elif isinstance(function, FunctionType):
        try:
            values = list(_read_by(function))
        except ValueError:  # a variable around it has no value yet
            return None
        found = [function.__code__]
    else:
        return None
    own = ("functools", _package(getattr(function, "func", function)))
    for value in values:
        if isinstance(value, FunctionType | functools.partial):
            is_known = value in seen or _package(value) not in own
            inside = (_Same(value),) if is_known else _meaning(value, seen | {value})
            if inside is None:
                return None
            found.append(inside)
        elif isinstance(value, _FIXED):
            found += [type(value), _Same(value) if isinstance(value, jax.Array) else value]
        else:
            return None
    return tuple(found)


def _package(function: Any) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]


def _read_by(function: FunctionType) -> Iterator[Any]:
    """The values of the variables around a function, of its globals, and of its defaults."""
    yield from inspect.getclosurevars(function).nonlocals.values()
    for name in dict.fromkeys(_names(function.__code__)):
        if name in function.__globals__:
            yield function.__globals__[name]
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _names(code: CodeType) -> Iterator[str]:
    """The names in a function and in those defined in it. Some are attributes; that does no harm."""
    yield from code.co_names
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names(constant)
