"""Errors that name the argument with the wrong type, whatever error that type caused."""

import dataclasses
import functools
import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

_F = TypeVar("_F", bound=Callable[..., Any])
_WORDS: dict[Any, str] = {
    jax.Array: "an array of numbers",
    float: "a real number",
    int: "an integer",
    str: "a string",
    np.dtype: "a dtype",
    NoneType: "None",
    Sequence[int]: "a sequence of integers",
    Sequence[str]: "a sequence of strings",
    Sequence[Sequence[int]]: "a sequence of groups of integers",
    Sequence[tuple[int, int]]: "a sequence of pairs of integers",
}


def explained(function: _F) -> _F:
    """Wraps ``function`` so that its errors name the argument that does not match its annotation.

    Types are checked only after an error, so valid calls cost nothing more. Where a number is expected, a
    NumPy array of rank 0 is accepted.
    """
    kinds = {n: _kinds(p.annotation) for n, p in inspect.signature(function).parameters.items()}
    of_numbers = {name for name, its_kinds in kinds.items() if float in its_kinds}

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        for name in of_numbers & options.keys():
            options[name] = _as_number(options[name])
        try:
            return function(*args, **options)
        except Exception as error:
            given = {**dict(zip(kinds, args, strict=False)), **options}
            where = f"{function.__module__}.{function.__qualname__}"
            _raise_what_is_wrong(error, kinds, given, where.removesuffix(".__init__"))
            raise

    return cast(_F, called)


def explaining_fields(method: _F) -> _F:
    """Wraps a dataclass's ``method`` so that its errors name the field that does not match its annotation."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except Exception as error:
            own = [f for f in dataclasses.fields(self) if f.name not in ("parent", "name")]
            kinds = {field.name: _kinds(field.type) for field in own}
            given = {name: getattr(self, name, None) for name in kinds}
            where = f"{type(self).__module__}.{type(self).__qualname__}"
            _raise_what_is_wrong(error, kinds, given, where)
            raise

    return cast(_F, called)


def _raise_what_is_wrong(
    error: Exception, kinds: dict[str, tuple[Any, ...]], given: dict[str, Any], where: str
) -> None:
    wrong = (n for n, v in given.items() if n in kinds and not _is_one(v, kinds[n]))
    name = next(wrong, None)
    if name is None or re.search(rf"\b{name}\b", str(error)):
        return
    words = " or ".join(map(_words_for, kinds[name]))
    # jaxnorm.norms.sample._layer_norm.layer_norm or jaxnorm.linen._layer_norm.LayerNorm
    public = re.sub(r"\.(core|norms)\..*(?=\.)|\._\w+(?=\.)", "", where)
    raise ValueError(
        f"{name} must be {words}; got {reprlib.repr(given[name])}. See help({public})."
    ) from error


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Returns the types of a union. np.dtype stands for all the types that can be made into a dtype."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if np.dtype not in kinds:
        return kinds
    return (np.dtype, *(kind for kind in kinds if kind is NoneType or get_origin(kind) is Literal))


def _words_for(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if _is_protocol(kind):
        return "a function"
    return _WORDS.get(kind) or getattr(kind, "__name__", str(kind))


def _is_protocol(kind: Any) -> bool:
    return get_origin(kind) is Callable or getattr(kind, "_is_protocol", False)


def _as_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _is_one(value: Any, kinds: tuple[Any, ...]) -> bool:
    return any(_is(value, kind) for kind in kinds)


def _is(value: Any, kind: Any) -> bool:
    if kind in (Any, bool, inspect.Parameter.empty):  # _arguments checks flags
        return True
    if get_origin(kind) is Sequence:
        several = isinstance(value, Iterable) and not isinstance(value, str)
        return several and all(_is(v, get_args(kind)[0]) for v in value)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is np.dtype:
        return _is_dtype(value)
    if kind in (jax.Array, float, int):
        scalar = kind is jax.Array or np.shape(value) == ()
        wanted = jnp.integer if kind is int else jnp.number
        return scalar and _has_dtype(value, wanted)
    fields = getattr(kind, "_fields", None)  # a tuple is accepted for a NamedTuple
    if fields is not None and isinstance(value, tuple):
        return len(value) == len(fields)
    if _is_protocol(kind):
        return callable(value)
    kind = get_origin(kind) or kind
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_dtype(value: Any) -> bool:
    try:
        jnp.dtype(value)
    except (TypeError, ValueError):
        return False
    return value is not None


def _has_dtype(value: Any, wanted: Any) -> bool:
    try:
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    except (TypeError, ValueError):  # a ragged list
        return False
    return any(jnp.issubdtype(dtype, kind) for kind in (wanted, np.bool_, jax.dtypes.extended))
