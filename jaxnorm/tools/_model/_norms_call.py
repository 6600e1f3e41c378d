"""Where a norm is called, also if a subclass of its class overrides ``__call__``.

    class NormRelu(nn.BatchNorm):
        def __call__(self, x, train):
            return nn.relu(super().__call__(x, use_running_average=not train))

A subclass may change the input and the output, and take other arguments. What the tools observe or replace is
therefore the call of the norm itself, here ``super().__call__``.
"""

import functools
import inspect
import itertools
from collections.abc import Callable
from types import CodeType
from typing import Any

import flax.linen as nn
from flax import nnx

FLAX = (nn.BatchNorm, nnx.BatchNorm)
_LIBRARIES = {"flax", "jaxnorm"}


def says(kind: type) -> bool:
    """Whether it is known how layers of the class ``kind`` keep running statistics."""
    return hasattr(kind, "running_norm") or issubclass(kind, FLAX)


@functools.cache
def norms_class(kind: type) -> Any:
    """The class of the norm itself, among ``kind`` and its bases.

    Its ``__call__`` is the norm's own, which it may decorate. A class of users without one is passed over,
    since its methods may call the norm. It is ``kind`` if that one does not call the norm, or is no norm.
    """
    if not says(kind) or not calls_norm(kind):
        return kind
    order, around = kind.__mro__, overriding(kind)
    bases = order[order.index(around[-1]) + 1 :] if around else order
    return next((k for k in bases if _is_norm(k)), kind)


def speaks_for_itself(kind: type) -> bool:
    """Whether a class of users defines how it keeps running statistics."""
    return any(_tells(k) and not _is_of_library(k) for k in kind.__mro__)


def _is_of_library(kind: type) -> bool:
    # Also true of a class that the tools made from such a class.
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _is_norm(kind: type) -> bool:
    # A mixin is not: the tools call this class and subclass it.
    return issubclass(kind, (nn.Module, nnx.Module)) and (_is_of_library(kind) or _calls(kind))


def _tells(kind: type) -> bool:
    return "running_norm" in vars(kind) and "of_tools" not in vars(kind)


def _calls(kind: type) -> bool:
    return "__call__" in vars(kind) and "of_tools" not in vars(kind)


@functools.cache
def overriding(kind: type) -> tuple[type, ...]:
    """The classes of users that override the ``__call__`` of a norm, and do not just decorate it."""
    if not says(kind):
        return ()
    order = kind.__mro__
    norm = next(i for i, k in enumerate(order) if _tells(k) or k in FLAX)
    calling = [i for i, k in enumerate(order) if _calls(k)]
    functions = [inspect.unwrap(vars(order[i])["__call__"]) for i in calling]
    pairs = zip(calling, itertools.pairwise(functions), strict=False)
    return tuple(order[i] for i, (own, base) in pairs if i < norm and own is not base)


@functools.cache
def calls_norm(kind: type) -> bool:
    """Whether every ``__call__`` that overrides a norm's calls another one, by what its code reads."""
    functions = (inspect.unwrap(vars(k)["__call__"]) for k in overriding(kind))
    return all(_reads(f.__code__, "__call__") for f in functions if inspect.isfunction(f))


def is_norms_call(context: nn.module.InterceptorContext) -> bool:
    """Whether a call of ``__call__`` that Flax intercepts is that of the norm itself."""
    kind = type(context.module)
    base = norms_class(kind)
    method = context.orig_method
    function = getattr(method, "func", method)  # Flax binds it to the layer
    return base is kind or inspect.unwrap(function) is inspect.unwrap(base.__call__)


def call_norm(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a norm itself, not a subclass's ``__call__`` that overrides its own."""
    return norms_class(type(layer)).__call__(layer, *args, **kwargs)


def with_norms_call(
    kind: Any, name: str, call_of: Callable[[Any], Callable[..., Any]], **about: Any
) -> Any:
    """A subclass of an NNX class in which ``call_of(base)`` replaces ``base.__call__``, the norm's own."""
    base = norms_class(kind)
    members = {"__call__": call_of(base), "of_tools": True, "__module__": base.__module__}
    about = {"__module__": kind.__module__, **about}
    if base is kind:
        return type(name, (kind,), {**members, **about})
    # It comes between the classes of users and the base, so that their super().__call__ finds it.
    replaced = type(base.__name__, (base,), members)
    return type(name, (kind, replaced), about)


def _reads(code: CodeType, name: str) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return name in code.co_names or any(_reads(code, name) for code in inner)
