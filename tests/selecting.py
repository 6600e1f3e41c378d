"""Selects the cases that `make test` runs; `make test-all` runs all."""

from collections.abc import Iterable
from typing import Any

import pytest

from jaxnorm.norms._registry import REGISTRY


def thorough_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """``cases`` for parametrize, all marked ``thorough`` except those in ``quick``."""
    return [
        pytest.param(case, marks=[] if case in quick else pytest.mark.thorough) for case in cases
    ]


REPRESENTATIVES = {
    *("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm"),
    *("InstanceNorm", "SpectralNorm", "WeightNorm"),
    *("batch_norm", "layer_norm", "rms_norm", "group_norm"),
    *("instance_norm", "spectral_norm", "weight_norm"),
    *("batch_norm_inference", "tracked_instance_norm", "input_norm"),
    *("AdaRMSNorm", "BatchRenorm", "DomainBatchNorm", "EvoNormS0"),
    *("FilterResponseNorm", "QKNorm", "Spade"),
    *("ada_rms_norm", "batch_renorm", "evo_norm_s0"),
    *("filter_response_norm", "qk_norm", "add_rms_norm"),
    *("iterative_whitening", "ScaledWeightStandardization", "scaled_weight_standardization"),
}
"""Norms that stand for all in tests of what all share: devices, masks, dtypes, transforms, tools. They are
those of Flax, and one of each kind that is made in another way."""
MANY = 8
"""In a test with at least so many cases, half of them stand for the rest."""
NORMS = {name for norm in REGISTRY for name in (*norm.functions, norm.layer)}


def selected(cases: list[Any]) -> list[Any]:
    """The cases of one test that `make test` runs.

    ``thorough`` cases never run. Unless the test is marked ``every_case``, norms for which others stand are
    left out, too. If it is marked ``sampled``, as many cases remain as cover every value of every parameter;
    otherwise, if nothing was left out and there are at least `MANY`, half of them.
    """
    quick = [case for case in cases if not case.get_closest_marker("thorough")]
    if not hasattr(cases[0], "callspec") or cases[0].get_closest_marker("every_case"):
        return quick
    quick = [case for case in quick if not is_represented(case)]
    if cases[0].get_closest_marker("sampled"):
        return covering(quick)
    return half_of(quick) if len(quick) == len(cases) >= MANY else quick


def is_represented(case: Any) -> bool:
    """Whether a test case is about norms for which others stand in `make test`."""
    words = {word for v in case.callspec.params.values() for word in str(v).split()}
    named = words & NORMS
    return bool(named) and named.isdisjoint(REPRESENTATIVES)


def covering(cases: list[Any]) -> list[Any]:
    """Enough cases of one test for every value of every parameter to occur.

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


def half_of(cases: list[Any]) -> list[Any]:
    """Half of the cases of one test, as the squares of one colour on a chessboard.

    Every second case in order would always have the same value of a parameter with two values. Parameters
    that are given together are one side of the board.
    """
    columns = [
        [id(case.callspec.params[name]) for case in cases] for name in cases[0].callspec.params
    ]
    sides: list[list[int]] = []
    for column in sorted(columns, key=lambda column: len(set(column)), reverse=True):
        # A parameter that follows from another is given together with it.
        if all(len(set(zip(side, column, strict=True))) > len(set(side)) for side in sides):
            sides.append(column)
    places = [[list(dict.fromkeys(side)).index(value) for value in side] for side in sides]
    return [case for case, *place in zip(cases, *places, strict=True) if sum(place) % 2 == 0]
