"""Makes calling the modules compatible with Flax's transforms."""

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any, TypeVar, cast

_Call = TypeVar("_Call", bound=Callable[..., Any])


def transformable(call: _Call) -> _Call:
    """Wraps ``call`` so that ``nnx.vmap(layer)(x)``, ``nnx.remat`` and ``nnx.scan`` work.

    These transforms bind the arguments to the signature, fill in the defaults, and raise if any argument is
    keyword-only. The signature they see therefore has ``**options`` instead of the keyword-only arguments.
    """

    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    declared = inspect.signature(call)
    read = [p for p in declared.parameters.values() if p.kind < Parameter.KEYWORD_ONLY]
    options = Parameter("options", Parameter.VAR_KEYWORD)
    called.__signature__ = declared.replace(parameters=[*read, options])  # pyright: ignore[reportAttributeAccessIssue]
    return cast(_Call, called)
