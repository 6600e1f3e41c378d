"""What tests read in a program."""

from collections.abc import Iterator
from typing import Any

from jaxnorm.core._jax import jaxprs_in


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, including those of nested ones."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in(eqn.params):
            yield from equations(inner)
