"""Makes Linen modules that call other layers instead of some of their own, without changing their code."""

import functools
import inspect
from typing import Any, TypeVar

import flax.linen as nn

from ._intercept import (
    Answer,
    Watched,
    answered_first_by,
    new_number,
    rebuilt,
    traced_for,
    watching,
)

_Module = TypeVar("_Module", bound=nn.Module)


def answering(module: _Module, is_watched: Watched, answer: Answer) -> _Module:
    """Returns ``module`` with ``answer`` deciding what the layers that ``is_watched`` accepts return.

    The result has a class of its own, with the same name, fields and methods. Equal answers share a class.
    """
    return rebuilt(module, _answering_class(type(module), is_watched, answer))


def without_answers(module: nn.Module, answers: type) -> nn.Module:
    """Returns ``module`` without the answers of this type that `answering` added."""
    kind: Any = type(module)
    answer = getattr(kind, "answer", None)
    if answer is None:
        return module
    before = without_answers(rebuilt(module, kind.answering_for), answers)
    return before if isinstance(answer, answers) else answering(before, kind.watches, answer)


@functools.cache
def _answering_class(kind: type[nn.Module], is_watched: Watched, answer: Answer) -> type[nn.Module]:
    number = new_number()

    def within(method: Any) -> Any:
        @functools.wraps(method, updated=())
        def called(self: Any, *args: Any, **kwargs: Any) -> Any:
            with watching(is_watched), answered_first_by(answer), traced_for(number):
                return method(self, *args, **kwargs)

        return called

    own = inspect.getmembers(
        kind, lambda f: inspect.isfunction(f) and not hasattr(nn.Module, f.__name__)
    )
    public = [(name, f) for name, f in own if not name.startswith("_") and not hasattr(f, "nowrap")]
    methods = {name: within(f) for name, f in [*public, ("__call__", kind.__call__)]}

    def __reduce__(self: Any) -> Any:
        return answering, (rebuilt(self, kind), is_watched, answer)

    about = {
        "__reduce__": __reduce__,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "answering_for": kind,
        "watches": staticmethod(is_watched),
        "answer": staticmethod(answer),
    }
    return type(kind.__name__, (kind,), {**methods, **about})
