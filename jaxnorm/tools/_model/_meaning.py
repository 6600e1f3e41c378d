"""What determines the effect of code: the code itself and all that it reads besides its arguments."""

import dataclasses
import functools
import inspect
import sys
import sysconfig
from collections.abc import Hashable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

import flax.linen as nn
import jax
import numpy as np

_OF_LINEN = ("parent", "name", "scope", "_state")
_VALUES = (bool, int, float, complex, str, bytes, NoneType, np.dtype, np.generic)
_LARGEST = 1000  # values in a container
_PATHS = tuple(
    {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


class _Same:
    """A value that is equal only to itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class Changeable(Exception):
    """Something is read that can change unnoticed."""


def meaning_of(value: Any, seen: set[int] | None = None) -> Hashable:
    """What determines the effect of ``value``: for code, the code itself and all that it reads.

    Libraries, which are installed, do not change. What was ``seen`` before is not described again.

    Raises:
        Changeable: If something is read whose contents are not known: an object, an array, a user's module.
    """
    if isinstance(value, _VALUES):
        return type(value), value
    seen = set() if seen is None else seen
    if isinstance(value, jax.Array) or id(value) in seen or _is_of_library(value):
        return _Same(value)
    seen.add(id(value))
    if isinstance(value, tuple | list | dict) and len(value) <= _LARGEST:  # as they are now
        parts = (*value, *value.values()) if isinstance(value, dict) else value
        return type(value), len(value), *(meaning_of(part, seen) for part in parts)
    if isinstance(value, set | frozenset) and all(isinstance(part, _VALUES) for part in value):
        return type(value), frozenset(map(meaning_of, value))
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.values())
        return _Same(functools.partial), *value.keywords, *(meaning_of(p, seen) for p in parts)
    if isinstance(value, FunctionType):
        parts = (*_read_by(value), *vars(value), *vars(value).values())
        return value.__code__, *(meaning_of(part, seen) for part in parts)
    if isinstance(value, type):
        own = (meaning_of(member, seen) for member in _members(value))
        return _Same(value), *(meaning_of(base, seen) for base in value.__bases__), *own
    if isinstance(value, nn.Module):
        fields = (n for n in value.__dataclass_fields__ if n not in ("parent", "name"))
        parts = (meaning_of(getattr(value, name), seen) for name in fields)
        return meaning_of(type(value), seen), value.name, *parts
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith("jaxnorm."):
        parts = (meaning_of(getattr(value, f.name), seen) for f in dataclasses.fields(value))
        return type(value), *parts
    raise Changeable(value)


def _members(kind: type) -> Iterator[Any]:
    """The functions of a class, and the other values that its code can read."""
    for name, member in vars(kind).items():
        if isinstance(member, property):
            yield from (f for f in (member.fget, member.fset) if f is not None)
            continue
        member = getattr(member, "__func__", member)  # of a static or class method
        member = getattr(member, "__wrapped__", member)  # of a method that Flax wraps
        is_special = name.startswith("__") and name.endswith("__") and name != "__call__"
        if (
            is_special
            and getattr(getattr(member, "__code__", None), "co_filename", "<string>") == "<string>"
        ):
            continue  # written by `dataclass`, or not code
        if name.startswith(("_pytree_", "_abc_")) or name in _OF_LINEN:
            continue  # Flax's or Python's own
        yield member


def _is_of_library(value: Any) -> bool:
    """Whether a module, class or function belongs to an installed package, Python, or this package."""
    if isinstance(value, BuiltinFunctionType):
        if not isinstance(value.__self__, ModuleType | NoneType):
            return False  # a method of an object
    elif not isinstance(value, ModuleType | type | FunctionType | np.ufunc):
        # A function in an object of a library, such as one that JAX compiles.
        value = inspect.unwrap(value) if callable(value) else None
        if not isinstance(value, FunctionType):
            return False
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    if name is None or name.partition(".")[0] in ("jaxnorm", "numpy"):
        return name is not None
    file = getattr(sys.modules.get(name), "__file__", None)
    return str(file).startswith(_PATHS) if file else name in sys.builtin_module_names


def _read_by(function: FunctionType) -> Iterator[Any]:
    """The values of the variables around a function, of its globals, and of its defaults."""
    try:
        yield from (cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:
        raise Changeable(function) from None  # a variable that has no value yet
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
