"""Selects the cases that `make test` runs; `make test-all` runs all."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """``cases`` for parametrize, all marked ``thorough`` except those in ``quick``."""
    return [
        pytest.param(case, marks=[] if case in quick else pytest.mark.thorough) for case in cases
    ]


def covering(cases: list[Any]) -> list[Any]:
    """Enough cases of one ``sampled`` test for every value of every parameter to occur.

    The selection is greedy: it always adds the case with the most values that have not occurred yet.
    """
    values = {
        case: {(name, id(value)) for name, value in case.callspec.params.items()} for case in cases
    }
    missing, chosen = set().union(*values.values()), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(values[case] & missing)))
        missing -= values[chosen[-1]]
    return chosen
