"""The decorator of all public functions of arrays."""

from collections.abc import Callable
from typing import TypeVar

from ._arguments import checked
from ._explained import explained
from ._staged import staged

_F = TypeVar("_F", bound=Callable)


def public(function: _F) -> _F:
    """Traces ``function`` only once, checks its numbers and flags, and makes its errors name the argument."""
    return explained(checked(staged(function)))
