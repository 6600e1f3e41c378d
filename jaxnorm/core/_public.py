"""What every public function of arrays is."""

from collections.abc import Callable
from typing import TypeVar

from ._arguments import checked
from ._explained import explained
from ._staged import staged

_F = TypeVar("_F", bound=Callable)


def public(function: _F) -> _F:
    """``function``, with numbers and flags checked, errors that name the argument, and traced once."""
    return explained(checked(staged(function)))
