"""Batch renorm as CrossQ and sbx compute it, against a float64 oracle of their formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx
from tests.cases import draw

WARMUP, FEATURES = 2, 6
OPTIONS: dict[str, Any] = {
    **{"form": "crossq", "rmax": 3.0, "dmax": 5.0, "warmup_steps": WARMUP},
    **{"use_scale": False, "use_bias": False},
}
# Some features barely vary, so that it matters where ε is added.
SIZES = np.array([1e-3, 0.03, 0.3, 1, 10, 100], np.float32)
BATCHES = [
    SIZES * draw(np.random.default_rng(seed), (16, FEATURES), "float32", seed, 1 + seed)
    for seed in range(4)
]


class Sbx:
    """The layer in NumPy."""

    def __init__(self) -> None:
        self.mean, self.var, self.steps = np.zeros(FEATURES), np.ones(FEATURES), 0

    def evaluated(self, x: Any) -> Any:
        """Normalizes with the running statistics."""
        return (x - self.mean) / np.sqrt(self.var + 1e-3)

    def trained(self, x: Any) -> Any:
        """Normalizes with a mean and a variance that are corrected after the warm-up."""
        batch_mean, batch_var = x.mean(0), x.var(0)
        mean, var = batch_mean, batch_var
        if self.steps >= WARMUP:
            running_std = np.sqrt(self.var + 1e-3)
            r = np.clip(np.sqrt(batch_var + 1e-3) / running_std, 1 / 3, 3)
            d = np.clip((batch_mean - self.mean) / running_std, -5, 5)
            mean, var = batch_mean - d * np.sqrt(batch_var) / r, batch_var / r**2
        self.mean = 0.99 * self.mean + 0.01 * batch_mean
        self.var = 0.99 * self.var + 0.01 * batch_var
        self.steps += 1
        return (x - mean) / np.sqrt(var + 1e-3)


@pytest.mark.parametrize("system", ["linen", "nnx"])
def test_steps_and_evaluation(system: str) -> None:
    """Outputs of all steps, the state after them and an evaluation match."""
    book = Sbx()
    expected = [book.trained(np.float64(x)) for x in BATCHES]
    if system == "linen":
        layer: Any = jnl.BatchRenorm(**OPTIONS)
        variables = layer.init(jax.random.key(0), BATCHES[0], use_running_average=False)
        outputs = []
        for x in BATCHES:
            y, variables = layer.apply(
                variables, x, use_running_average=False, mutable=["batch_stats"]
            )
            outputs.append(y)
        stats = variables["batch_stats"]
        evaluated = layer.apply(variables, BATCHES[0], use_running_average=True)
    else:
        module = jnx.BatchRenorm(FEATURES, **OPTIONS, rngs=nnx.Rngs(0))
        outputs = [module(x) for x in BATCHES]
        stats = {name: getattr(module, name)[...] for name in ("mean", "var", "steps")}
        evaluated = module(BATCHES[0], use_running_average=True)
    for y, book_y in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(y, book_y, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(stats["mean"], book.mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], book.var, rtol=1e-6)
    assert stats["steps"] == book.steps
    np.testing.assert_allclose(evaluated, book.evaluated(BATCHES[0]), rtol=2e-5, atol=2e-5)


def test_a_constant_batch_has_finite_gradients() -> None:
    """The root of a variance of 0 does not make them infinite."""
    layer: Any = jnl.BatchRenorm(**{**OPTIONS, "warmup_steps": 0}, use_running_average=False)
    x = jnp.full((4, FEATURES), 2.0)
    variables = layer.init(jax.random.key(0), x)

    def loss(x: Any) -> Any:
        y, _ = layer.apply(variables, x, mutable=["batch_stats"])
        return (y * jnp.arange(4.0)[:, None]).sum()

    assert np.isfinite(jax.grad(loss)(x)).all()
