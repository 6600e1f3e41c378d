"""Which cases of a test `make test` runs."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from tests.selecting import half_of


def cases_of(*sides: tuple[tuple[str, ...], int]) -> list[Any]:
    """Cases with parameters that are given together, and the number of their values."""
    return [
        SimpleNamespace(
            callspec=SimpleNamespace(
                params={
                    name: i if name != "twice" else i // 2
                    for (names, _), i in zip(sides, place, strict=True)
                    for name in names
                }
            )
        )
        for place in itertools.product(*(range(count) for _, count in sides))
    ]


@pytest.mark.parametrize(
    "sides",
    [
        ((("a",), 9),),
        ((("a",), 4), (("b",), 2)),
        ((("a",), 2), (("b", "c"), 5)),
        ((("a", "b"), 5), (("c", "d", "e"), 3), (("f",), 2)),
        ((("a", "twice"), 8), (("b",), 2)),
    ],
)
def test_half_has_every_value(sides: Any) -> None:
    """Half of the cases have every value of every parameter, if there are at least two parameters."""
    cases = cases_of(*sides)
    half = half_of(cases)
    assert len(half) == -(-len(cases) // 2)
    if len(sides) > 1:
        for names, count in sides:
            assert {case.callspec.params[names[0]] for case in half} == set(range(count))
