"""The size of programs compared with Flax's, and how often they are traced."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import export

from benchmarks import tracing
from jaxnorm import linen as jnl
from jaxnorm.norms.sample import _layer_norm

STEPS = {name: (step, arguments) for name, step, arguments in tracing.steps("jaxnorm")}
FLAX = {name: (step, arguments) for name, step, arguments in tracing.steps("Flax")}
PROGRAMS = [
    pytest.param(name, marks=pytest.mark.thorough if name == "ResNet-50" else ()) for name in STEPS
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_equations(program: str) -> None:
    """A training step has at most 1.5 times the equations of one with Flax's norms."""
    ours, flax = (
        tracing.equations(jax.make_jaxpr(f)(*arguments).jaxpr)
        for f, arguments in (STEPS[program], FLAX[program])
    )
    assert ours <= 1.5 * flax


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_lines(program: str, platform: str) -> None:
    """The lowered program has at most twice the lines of Flax's on every platform."""

    def lines(step: Any) -> int:
        f, arguments = step
        module = export.export(jax.jit(f), platforms=[platform])(*arguments).mlir_module()
        return len(module.splitlines())

    assert lines(STEPS[program]) <= 2 * lines(FLAX[program])


def test_layers_that_are_alike_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal layers are traced once, within a model, across models, and outside jit."""
    x = jnp.ones((3, 5, 17))
    once = chex.assert_max_traces(_layer_norm.normalized_by, n=1)
    monkeypatch.setattr(_layer_norm, "normalized_by", once)
    layer = jnl.LayerNorm()
    variables = layer.init(jax.random.key(0), x)
    for _ in range(2):
        jax.jit(lambda x: layer.apply(variables, layer.apply(variables, x) * 2))(x)
    layer.apply(variables, x)
    with pytest.raises(AssertionError, match="traced"):
        layer.apply(variables, x[1:])
