"""Registers state types that exported programs take and return."""

from typing import TypeVar

from jax import export

_State = TypeVar("_State", bound=type)


def serialized(state: _State) -> _State:
    """Lets `jax.export` serialize a NamedTuple as part of a program, under its public name."""
    export.register_namedtuple_serialization(state, serialized_name=f"jaxnorm.{state.__name__}")
    return state
