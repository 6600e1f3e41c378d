"""The oracle's derivatives against finite differences, for random complex and masked input."""

import numpy as np
import pytest

from tests.cases import Case
from tests.oracle import BatchNorm, Outputs, Primals, wide

CASES = (
    Case("real", (4, 3, 2)),
    Case("masked", (5, 3, 2), 1, mask_name="full"),
    Case("complex", (7, 2), dtype="complex64", mask_name="full"),
    Case("nothing", (4, 2), mask_name="nothing"),
)


def pairing(a: tuple, b: tuple) -> float:
    """Re Σ a · b over all leaves."""
    return sum(float((wide(u) * wide(v)).sum().real) for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_derivatives_are_those_of_the_value(case: Case, nan: bool) -> None:
    """Tangents match central differences of the value, and gradients are their transpose."""
    norm = BatchNorm(case.feature_axes, 0.7, 1e-2, unbiased=True, mask=case.mask())
    at = Primals(*map(wide, case.primals()))
    if nan and norm.mask is not None:
        at = at._replace(x=np.where(norm.mask, at.x, np.nan))
    along = Primals(*(wide(a) for a in case.tangents()))
    h = 1e-6
    ahead, behind = (
        norm.value(Primals(*(a + step * d for a, d in zip(at, along, strict=True))))
        for step in (h, -h)
    )
    tangent = norm.tangent(at, along)
    for t, a, b in zip(tangent, ahead, behind, strict=True):
        np.testing.assert_allclose(t, (a - b) / (2 * h), rtol=1e-6, atol=1e-6)
    cotangents = case.like(Outputs(*tangent))
    gradient = norm.gradient(at, cotangents)
    if nan and norm.mask is not None:
        assert not np.any(gradient.x[np.isnan(at.x)])
    np.testing.assert_allclose(pairing(gradient, along), pairing(cotangents, tangent), rtol=1e-9)
