"""Programs know which platform they are compiled for."""

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from jax.sharding import AxisType, PartitionSpec

from jaxnorm.core.lowering._platform import compiled_for


def chosen(x: jax.Array) -> jax.Array:
    """1 on a CPU, 0 elsewhere."""
    return lax.select(compiled_for("cpu"), jnp.ones_like(x), jnp.zeros_like(x))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_a_constant(platform: str) -> None:
    """The answer is a constant in the program of a platform."""
    text = export.export(jax.jit(chosen), platforms=[platform])(jnp.ones(2)).mlir_module()
    assert f"dense<{str(platform == 'cpu').lower()}> : tensor<i1>" in text


def test_several_platforms() -> None:
    """A program for several platforms decides where it runs."""
    exported = export.export(jax.jit(chosen), platforms=["tpu", "cpu"])(jnp.ones(2))
    assert exported.call(jnp.ones(2)).tolist() == [1, 1]


def test_in_every_context() -> None:
    """Eager, mapped, differentiated, under shard_map and on an explicit mesh."""
    x = jnp.ones(4)
    assert chosen(x).tolist() == [1] * 4
    assert jax.vmap(chosen)(x).tolist() == [1] * 4
    assert jax.jvp(chosen, (x,), (x,))[0].tolist() == [1] * 4
    with jax.disable_jit():
        assert chosen(x).tolist() == [0] * 4  # it is not known, and both ways are right
    spec = PartitionSpec("i")
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, spec)
        assert jax.shard_map(chosen, in_specs=spec, out_specs=spec)(x).tolist() == [1] * 4
        assert jax.jit(chosen)(x).tolist() == [1] * 4
