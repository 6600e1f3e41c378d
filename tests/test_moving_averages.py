"""Every moving average, for extreme weights and values.

A large value with a weight of zero does not erase a small one, and infinity does not turn into NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import tools
from tests.calls import arguments, functions

X: Any = np.array([[-1.0], [2.0], [5.0], [-3.0]], np.float32) + np.float32(0.4845)
MEAN, VAR = X.mean(dtype=np.float64), X.var(dtype=np.float64)
WEIGHTS = (0.0, 0.25, 0.9, 1.0)
OLD = (1e8, 0.5, np.inf, np.nan)
FUNCTIONS = functions("stats", "momentum")


def moved(name: str, old: Any, weight: float) -> list[Any]:
    """The updated statistics of a function after the batch X, starting from all ``old``."""
    features = jnp.full(1, old, jnp.float32)
    stats: Any = jn.RunningStats(features, features)
    if name == "update_running_stats":
        updated = jn.update_running_stats(stats, jn.moments(X, 0), momentum=weight)
        return [updated.mean, updated.var]
    given = {k: v for k, v in arguments(name).items() if k in ("mean_weights", "var_weights")}
    if name == "evo_norm_b0":
        given["v"] = jnp.ones(1)
    if name == "iterative_whitening":
        stats = jn.WhiteningStats(features, features[:, None])
        given["epsilon"] = 0.0
    if name == "batch_renorm":
        given["epsilon"] = 0.0
    # A single instance has the moments of all values.
    x = X[None] if name == "tracked_instance_norm" else X[:, None]
    updated = getattr(jn, name)(x, stats, momentum=weight, **given)[1]
    return [updated[0], updated[1]]


def mixed(old: float, new: float, weight: float) -> float:
    """The definition, except that values with a weight of zero are ignored."""
    kept = 0.0 if weight == 0 else weight * old
    return kept + (0.0 if weight == 1 else (1 - weight) * new)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.jax_0_10) if n == "batch_renorm" else n for n in FUNCTIONS],
)
def test_of_running_statistics(name: str) -> None:
    """Running means match the definition, and so do running variances or their counterparts."""
    cases = [(old, weight) for old in OLD for weight in WEIGHTS]
    found = jax.jit(lambda: [moved(name, old, weight) for old, weight in cases])()
    for (old, weight), (mean, other) in zip(cases, found, strict=True):
        old32 = float(np.float32(old))
        np.testing.assert_allclose(mean, mixed(old32, MEAN, weight), rtol=2e-6, err_msg=f"{old}")
        want = mixed(old32, VAR, weight)
        if name == "batch_renorm":  # it averages the standard deviation
            want = mixed(np.sqrt(old32), np.sqrt(VAR), weight) ** 2
        if name == "iterative_whitening":  # it averages the inverse standard deviation
            want = mixed(old32, VAR**-0.5, weight)
        np.testing.assert_allclose(other, want, rtol=2e-6, err_msg=f"{old} {weight}")


def test_of_weights() -> None:
    """Real and complex weights match; the product of a complex number and infinity is a special case."""
    old = np.array([*OLD, 1.2345, -np.inf], np.float32)
    new = np.array([1.2345, 1.2345, 1.2345, 1.2345, 1e8, 7], np.float32)

    @jax.jit
    def all_of_them(*leaves: Any) -> Any:
        a, b = ({"real": leaf, "complex": jax.lax.complex(leaf, leaf)} for leaf in leaves)
        return [tools.average(a, b, weight) for weight in WEIGHTS]

    for weight, tree in zip(WEIGHTS, all_of_them(old, new), strict=True):
        want = [mixed(float(a), float(b), weight) for a, b in zip(old, new, strict=True)]
        for got in (tree["real"], tree["complex"].real, tree["complex"].imag):
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_what_does_not_change_stays() -> None:
    """The average of a constant weight is that weight, after any number of steps."""
    old = np.random.default_rng(0).normal(size=1000).astype(np.float32)

    @jax.jit
    def many(a: Any) -> Any:
        return jax.lax.fori_loop(0, 1000, lambda _, a: tools.average(a, old, 0.999), a)

    np.testing.assert_allclose(many(old), old, rtol=2e-7)
