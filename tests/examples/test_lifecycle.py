"""The example of batch norm's whole life: every step leaves the outputs as they must be."""

import pytest

from examples import lifecycle
from tests.modules import loose

SMALL = lifecycle.Settings(width=4, size=8, images=8, steps=2)


@pytest.mark.parametrize("system", ["Linen", pytest.param("NNX", marks=pytest.mark.thorough)])
def test_every_step(system: str) -> None:
    """All comparisons agree up to rounding, and the statistics of frozen norms exactly."""
    with loose():  # optax's adam promotes
        steps = list(lifecycle.life(system, SMALL))
    assert len(steps) >= 8
    for what, difference, scale in steps:
        assert difference <= 1e-5 * scale, what
        assert scale > 0.1 and (difference == 0) == what.startswith("fine-tuned"), what
