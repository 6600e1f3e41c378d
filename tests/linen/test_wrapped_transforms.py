"""Linen wrappers of weights under `nn.jit`, `nn.remat`, `nn.vmap` and `nn.scan`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import pytest

from jaxnorm import linen as jnl
from tests.modules import KEY, Fields, assert_close, compiled, loose, normal, ramp
from tests.selecting import thorough_but

X = normal((5, 6))
STATE: Any = ["batch_stats"]
OVER_LAYERS: Fields = {
    "variable_axes": {"params": 0, "batch_stats": 0},
    "split_rngs": {"params": True},
}
OVER_STEPS: Fields = {
    "variable_broadcast": "params",
    "variable_carry": "batch_stats",
    "split_rngs": {"params": False},
}


class Layers(nn.Module):
    """Two wrapped layers, in the form that `nn.scan` requires."""

    system: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        """Applies both layers."""
        x = self.system.WeightNorm(nn.Dense(6), scale_init=ramp)(x)
        return self.system.SpectralNorm(nn.Dense(6))(x, update_stats=True), None


class Stacked(nn.Module):
    """Three such pairs in sequence, each with its own variables."""

    system: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> Any:
        """Uses `nn.scan` over layers."""
        return nn.scan(Layers, length=3, **OVER_LAYERS)(self.system)(x, None)


MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "jit": lambda system: nn.jit(Layers)(system),
    "remat": lambda system: nn.remat(Layers)(system),
    "vmap": lambda system: nn.vmap(Layers, **OVER_LAYERS)(system),
    "scan": Stacked,
    "vmap of the wrapper": lambda system: nn.vmap(system.WeightNorm, **OVER_LAYERS)(nn.Dense(6)),
    "remat of the wrapper": lambda system: nn.remat(system.WeightNorm)(nn.Dense(6)),
    "remat in the wrapper": lambda system: system.WeightNorm(nn.remat(nn.Dense)(6)),
}


@pytest.mark.parametrize("name", thorough_but(MODELS, *list(MODELS)[::3]))
def test_under_the_transforms_of_flax(name: str) -> None:
    """Names and shapes match Flax under the same transform, and so do results for the same variables."""

    def outcome(system: Any, variables: Any) -> Any:
        model: Any = MODELS[name](system)

        def loss(params: Any, x: jax.Array) -> Any:
            given = {**variables, "params": params}
            out, updated = model.apply(given, x, mutable=STATE)
            y = out[0] if isinstance(out, tuple) else out
            return (y * normal(y.shape, seed=2)).sum(), (y, updated)

        return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], X)

    def of(key: jax.Array) -> Any:
        variables: Any = MODELS[name](jnl).init(key, X)
        ours = outcome(jnl, variables)
        with loose():
            return variables, ours, outcome(nn, variables), MODELS[name](nn).init(key, X)

    variables, ours, theirs, expected = compiled(of, KEY)
    assert_close(ours, theirs, 1e-4)
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), v) for v in (variables, expected)]
    assert shapes[0] == shapes[1]


def test_scan_over_steps_carries_the_state() -> None:
    """Three steps of one layer in `nn.scan` match three calls (Flax's raises a data dependency error)."""

    class Steps(nn.Module):
        scanned: bool

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layer = Layers(jnl)
            x, _ = layer(x)
            if not self.scanned:
                return layer(layer(x)[0])[0]
            body: Any = nn.scan(lambda layer, x, _: layer(x), length=2, **OVER_STEPS)
            return body(layer, x, None)[0]

    def of(key: jax.Array) -> Any:
        variables = Steps(True).init(key, X)
        return [Steps(scanned).apply(variables, X, mutable=STATE) for scanned in (True, False)]

    assert_close(*compiled(of, KEY), tolerance=1e-5)


def test_init_under_jit_is_init() -> None:
    """Names, shapes and (up to rounding) values do not depend on jit."""
    model = Layers(jnl)
    assert_close(jax.jit(model.init)(KEY, X), model.init(KEY, X), 1e-5)
