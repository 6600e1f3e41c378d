"""A Linen module that calls other layers in the place of some of its own, and is not edited."""

import dataclasses
import functools
import inspect
from typing import Any, TypeVar

import flax.linen as nn

from ._watch import Answer, answered_first_by, watching

_Module = TypeVar("_Module", bound=nn.Module)


def answering(module: _Module, kinds: tuple[type, ...], answer: Answer) -> _Module:
    """``module``, whose layers of these ``kinds`` return what ``answer`` says, from now on.

    It is of a class of its own, with the same name, fields and methods. Equal answers make equal classes.
    """
    kind: Any = _answering_class(type(module), kinds, answer)
    fields = [f.name for f in dataclasses.fields(kind) if f.init and f.name != "parent"]
    return kind(**{name: getattr(module, name) for name in fields})


def without_answers(module: nn.Module) -> nn.Module:
    """The module that `answering` was given first."""
    kind: Any = getattr(type(module), "answering_for", None)
    if kind is None:
        return module
    fields = [f.name for f in dataclasses.fields(kind) if f.init and f.name != "parent"]
    return without_answers(kind(**{name: getattr(module, name) for name in fields}))


@functools.cache
def _answering_class(
    kind: type[nn.Module], kinds: tuple[type, ...], answer: Answer
) -> type[nn.Module]:
    def within(method: Any) -> Any:
        @functools.wraps(method, updated=())
        def called(self: Any, *args: Any, **kwargs: Any) -> Any:
            with watching(kinds), answered_first_by(answer):
                return method(self, *args, **kwargs)

        return called

    own = inspect.getmembers(
        kind, lambda f: inspect.isfunction(f) and not hasattr(nn.Module, f.__name__)
    )
    public = [(name, f) for name, f in own if not name.startswith("_") and not hasattr(f, "nowrap")]
    methods = {name: within(f) for name, f in [*public, ("__call__", kind.__call__)]}
    about = {"__module__": kind.__module__, "__doc__": kind.__doc__, "answering_for": kind}
    return type(kind.__name__, (kind,), {**methods, **about})
