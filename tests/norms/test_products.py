"""Products of matrices inside of norms are exact on devices that round their operands by default."""

from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax import lax

import jaxnorm as jn
from tests.modules import normal
from tests.programs import equations

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "iterative_whitening": (
        lambda x: jn.iterative_whitening(x, jn.init_whitening(4))[0],
        (normal((6, 5, 4)),),
    ),
    "spectral_norm": (
        lambda w: jn.spectral_norm(w, jn.init_spectral_norm(jax.random.key(0), w))[0],
        (normal((3, 4)),),
    ),
    "conv_spectral_norm": (
        lambda w: jn.conv_spectral_norm(w, normal((1, 5, 4, 2)))[0],
        (normal((3, 3, 2, 3)),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_products_have_the_highest_precision(name: str) -> None:
    """Every product has it, forward and backward."""
    f, args = CASES[name]
    for g in (f, jax.grad(lambda *a: f(*a).sum())):
        products = [e for e in equations(jax.make_jaxpr(g)(*args).jaxpr) if "precision" in e.params]
        assert {e.params["precision"] for e in products} == {(lax.Precision.HIGHEST,) * 2}
