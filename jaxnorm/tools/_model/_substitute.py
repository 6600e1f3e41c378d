"""Makes Linen modules that call other layers instead of some of their own, without changing their code."""

import functools
import inspect
from typing import Any, Protocol, TypeVar

import flax.linen as nn

from ._intercept import (
    LayerCall,
    check_interceptable,
    is_asked,
    new_number,
    traced_for,
    watching,
)
from ._rebuilt import rebuilt
from ._types import Layer

_Module = TypeVar("_Module", bound=nn.Module)


class Substitute(Protocol):
    """Decides what the layers that it watches return; hashable, because equal ones share a class."""

    def watches(self, layer: Layer, path: str) -> bool:
        """Whether to intercept the calls of a layer. Its path is relative to the module."""
        ...

    def __call__(self, call: LayerCall) -> Any:
        """Returns the result of a layer's call."""
        ...

    def __str__(self) -> str:
        """Says what is different about the module, as a part of its text."""
        ...


def answering(module: _Module, answer: Substitute) -> _Module:
    """Returns ``module`` with ``answer`` deciding what the layers that it watches return.

    The result has a class of its own, with the same name, fields and methods. It does the same as a part of a
    larger model.
    """
    return rebuilt(module, _answering_class(type(module), answer))


def without_answers(module: nn.Module, answers: type) -> nn.Module:
    """Returns ``module`` without the answers of this type that `answering` added."""
    kind: Any = type(module)
    answer = getattr(kind, "answer", None)
    if answer is None:
        return module
    before = without_answers(rebuilt(module, kind.answering_for), answers)
    return before if isinstance(answer, answers) else answering(before, answer)


@functools.cache
def _answering_class(kind: type[nn.Module], answer: Substitute) -> type[nn.Module]:
    number = new_number()

    def within(method: Any) -> Any:
        @functools.wraps(method, updated=())
        def called(self: Any, *args: Any, **kwargs: Any) -> Any:
            base = self.path if self.scope is not None else ()
            check_interceptable()
            if is_asked(answer, base):  # a method that another one calls
                return method(self, *args, **kwargs)
            with watching(answer.watches, answer, base), traced_for(number):
                return method(self, *args, **kwargs)

        return called

    own = inspect.getmembers(
        kind, lambda f: inspect.isfunction(f) and not hasattr(nn.Module, f.__name__)
    )
    public = [(name, f) for name, f in own if not name.startswith("_") and not hasattr(f, "nowrap")]
    methods = {name: within(f) for name, f in [*public, ("__call__", kind.__call__)]}

    def __reduce__(self: Any) -> Any:
        return answering, (rebuilt(self, kind), answer)

    def __repr__(self: Any) -> str:
        return f"{kind.__repr__(self)}  # {answer}"

    about = {
        "__repr__": __repr__,
        "__reduce__": __reduce__,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "answering_for": kind,
        "of_tools": True,
        "answer": staticmethod(answer),
    }
    return type(kind.__name__, (kind,), {**methods, **about})
