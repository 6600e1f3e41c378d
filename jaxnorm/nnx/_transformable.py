"""Calls that Flax's transforms take as they are."""

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any, TypeVar, cast

_Call = TypeVar("_Call", bound=Callable[..., Any])


def transformable(call: _Call) -> _Call:
    """``call``, so that ``nnx.vmap(layer)(x)`` works, and ``nnx.remat`` and ``nnx.scan`` likewise.

    They bind the arguments to the signature, fill in the defaults, and refuse the call if any of them is
    keyword-only. So the signature that they read has ``**options`` in the place of such arguments.
    """

    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    declared = inspect.signature(call)
    read = [p for p in declared.parameters.values() if p.kind < Parameter.KEYWORD_ONLY]
    options = Parameter("options", Parameter.VAR_KEYWORD)
    called.__signature__ = declared.replace(parameters=[*read, options])  # pyright: ignore[reportAttributeAccessIssue]
    return cast(_Call, called)
