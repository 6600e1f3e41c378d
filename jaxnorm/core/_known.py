"""Values that are known, with the derivative of how they would be computed."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

_Arrays = TypeVar("_Arrays")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def as_known(linear: Callable[[_Arrays], _Arrays], own: _Arrays, known: _Arrays) -> _Arrays:
    """``known``, with the derivative of ``linear(own)``: the same numbers, but for rounding."""
    del linear, own
    return known


@as_known.defjvp
def _(linear: Callable[[Any], Any], values: tuple[Any, Any], tangents: tuple[Any, Any]) -> Any:
    return as_known(linear, *values), linear(tangents[0])
