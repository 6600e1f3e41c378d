"""Selects the cases that `make test` runs; `make test-all` runs all."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """``cases`` for parametrize, all marked ``thorough`` except those in ``quick``."""
    return [
        pytest.param(case, marks=[] if case in quick else pytest.mark.thorough) for case in cases
    ]


TWINS = {
    *("AdaLayerNormZero", "AdaRMSNormZero", "AddLayerNorm", "SpadeBatchNorm", "SpadeGroupNorm"),
    *("EvoNormB1", "EvoNormB2", "EvoNormS1", "EvoNormS2"),
    *("ada_group_norm", "add_layer_norm", "evo_norm_s1", "evo_norm_s2"),
    *("evo_norm_b1", "evo_norm_b1_inference", "evo_norm_b2", "evo_norm_b2_inference"),
}
"""Norms that share nearly all of their code with another one. Their values are tested against the oracles in
`make test`, and all else in `make test-all`."""
AGAINST_ORACLES = ("test_options", "test_zoo", "test_completeness", "test_defaults", "test_house")


def is_of_twin(case: Any) -> bool:
    """Whether a test case is about a twin only, and not about its values."""
    if not hasattr(case, "callspec") or case.path.stem in AGAINST_ORACLES:
        return False
    words = (word for v in case.callspec.params.values() for word in str(v).split())
    return not TWINS.isdisjoint(words)


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
