"""Products of matrices inside of norms are exact on devices that round their operands by default."""

from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax import lax

import jaxnorm as jn
from tests.modules import normal

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


def products(jaxpr: Any) -> list[Any]:
    """The precisions of all products and convolutions of a jaxpr, also in those that it calls."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(eqn.params["precision"])
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            found += products(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("name", CASES)
def test_products_have_the_highest_precision(name: str) -> None:
    """Every product has it, forward and backward."""
    f, args = CASES[name]
    for g in (f, jax.grad(lambda *a: f(*a).sum())):
        found = products(jax.make_jaxpr(g)(*args).jaxpr)
        assert found and {*found} == {(lax.Precision.HIGHEST,) * 2}
