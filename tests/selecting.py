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
FOR_EVERY_NORM = {
    *("test_arguments", "test_arguments_are_read", "test_completeness"),
    *("test_defaults", "test_errors", "test_get_norm"),
    *("test_house", "test_masks", "test_module_fields"),
    *("test_options", "test_zoo", "test_zoo_state"),
}
"""Files in which no norm stands for others: values against the oracles, errors and documentation."""
NORMS = {name for norm in REGISTRY for name in (*norm.functions, norm.layer)}


def is_represented(case: Any) -> bool:
    """Whether a test case is about norms for which others stand in `make test`."""
    if not hasattr(case, "callspec") or case.path.stem in FOR_EVERY_NORM:
        return False
    words = {word for v in case.callspec.params.values() for word in str(v).split()}
    named = words & NORMS
    return bool(named) and named.isdisjoint(REPRESENTATIVES)


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


def half_of(cases: list[Any]) -> list[Any]:
    """Half of the cases of one ``halved`` test, as the squares of one colour on a chessboard.

    Every second case in order would always have the same value of a parameter with two values.
    """
    places: dict[str, dict[int, int]] = {}

    def place(name: str, value: Any) -> int:
        of_values = places.setdefault(name, {})
        return of_values.setdefault(id(value), len(of_values))

    return [
        case
        for case in cases
        if sum(place(*item) for item in case.callspec.params.items()) % 2 == 0
    ]
