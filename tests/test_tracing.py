"""The size of programs compared with Flax's, and how often they are traced."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import export

from benchmarks import tracing
from benchmarks.accelerators.programs import Library
from jaxnorm import linen as jnl
from jaxnorm.norms.sample import _layer_norm
from tests.selecting import thorough_but

every_program = pytest.mark.parametrize(
    "program", thorough_but(tracing.PROGRAMS, *(name for name in tracing.PROGRAMS if "12" in name))
)


@every_program
def test_equations(program: str) -> None:
    """A training step has at most 1.5 times the equations of one with Flax's norms."""

    def equations(library: Library) -> int:
        f, arguments = tracing.program(program, library)
        return tracing.equations(jax.make_jaxpr(f)(*arguments).jaxpr)

    assert equations("jaxnorm") <= 1.5 * equations("Flax")


@pytest.mark.sampled
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@every_program
def test_lines(program: str, platform: str) -> None:
    """The lowered program has at most twice the lines of Flax's on every platform."""

    def lines(library: Library) -> int:
        f, arguments = tracing.program(program, library)
        module = export.export(jax.jit(f), platforms=[platform])(*arguments).mlir_module()
        return len(module.splitlines())

    assert lines("jaxnorm") <= 2 * lines("Flax")


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
