"""The decorator of all public functions of arrays."""

from collections.abc import Callable
from typing import TypeVar

from ._arguments import checked
from ._explained import explained
from ._staged import staged

_F = TypeVar("_F", bound=Callable)


def public(function: _F) -> _F:
    """Wraps ``function`` to check numbers and flags, name arguments in errors, and be traced once."""
    return explained(checked(staged(function)))
