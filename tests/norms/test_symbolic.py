"""Programs exported with symbolic shapes, for all platforms, and deserialized again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxnorm as jn
from tests.calls import FEATURES, INPUTS, SHAPE, arguments, functions
from tests.modules import KEY
from tests.selecting import thorough_but
from tests.stands_for import CLASSES, ROWS, X, after_of, has_modes, is_wrapper, made

PLATFORMS = ("cpu", "cuda", "tpu")
# Norms with parameters along the batch, or with several inputs of the shape of x.
PER_EXAMPLE = (
    *("ada_group_norm", "ada_layer_norm", "ada_rms_norm", "adain"),
    *("add_layer_norm", "add_rms_norm", "modulate"),
)
NORMS = [name for name in functions("x") if name not in PER_EXAMPLE]
ROUND_TRIPS = ("batch_norm", "batch_norm_inference", "layer_norm", "rms_norm", "group_norm")
RNG = np.random.default_rng(3)


def exported(name: str, dims: str) -> tuple[export.Exported, Any]:
    """The export of a norm and its input gradient for symbolic ``dims``, and the function itself."""
    rest = {k: v for k, v in arguments(name).items() if k not in ("x", "residual")}

    def step(x: Any) -> Any:
        y, pull = jax.vjp(lambda x: jax.tree.leaves(getattr(jn, name)(x, **rest))[0], x)
        return y, pull(jnp.sin(y))

    x = jax.ShapeDtypeStruct(export.symbolic_shape(dims), jnp.float32)
    return export.export(jax.jit(step), platforms=PLATFORMS)(x), step


@pytest.mark.parametrize("name", NORMS)
def test_all_axes_but_the_features_are_free(name: str) -> None:
    """All axes except the features may be symbolic in a norm and its gradient."""
    program, _ = exported(name, f"b, h, w, {FEATURES}")
    assert program.platforms == PLATFORMS


@pytest.mark.parametrize("name", thorough_but(ROUND_TRIPS, *ROUND_TRIPS[::2]))
def test_there_and_back(name: str) -> None:
    """A deserialized program gives the same results as the function, for any size."""
    program, step = exported(name, f"b, h, w, {FEATURES}")
    again = export.deserialize(program.serialize())
    for shape in (SHAPE, (2, 1, 3, FEATURES)):
        x = RNG.normal(5, 2, shape).astype(np.float32)
        for a, b in zip(again.call(x), step(x), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_free_features(name: str) -> None:
    """Feature axes may be symbolic too, and so may the parameters."""
    b, h, c = export.symbolic_shape("b, h, c")
    spec = jax.ShapeDtypeStruct
    parameter, x = spec((2 * c,), jnp.float32), spec((b, h, 2 * c), jnp.bfloat16)
    options: dict[str, Any] = {"num_groups": 2} if name == "group_norm" else {}
    state = (jn.RunningStats(parameter, parameter),) if name == "batch_norm" else ()  # pyright: ignore[reportArgumentType]

    def norm(x: Any, scale: Any, *state: Any) -> Any:
        return getattr(jn, name)(x, *state, scale, **options)

    program = export.export(jax.jit(norm), platforms=PLATFORMS)(x, parameter, *state)
    assert jax.tree.leaves(program.out_avals)[0].ndim == 3


STATES = {
    "RunningStats": jn.init_running_stats(3, cumulative=True),
    "Moments": INPUTS["moments"],
    "InputStats": jn.init_input_norm(3),
    "WhiteningStats": jn.init_whitening(3),
    "SpectralState": jn.init_spectral_norm(jax.random.key(0), jnp.ones((4, 3))),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_states_are_serialized(state: Any) -> None:
    """Programs that take and return the package's states can be serialized."""
    program = export.export(jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s)))(state)
    back = export.deserialize(program.serialize()).call(state)
    assert type(back) is type(state)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b + 1)


LAYERS = [
    name
    for name in CLASSES
    if not is_wrapper(name) and not after_of(name, dict(ROWS[name].base), 1)
]


@pytest.mark.parametrize("mode", ["evaluation", "training"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, mode: str) -> None:
    """Linen and NNX layers export for any number and size of images."""
    options = dict(ROWS[name].base)
    if has_modes(name):
        options["use_running_average"] = mode == "evaluation"
    elif mode == "training":
        pytest.skip(f"{name} has one mode")
    linen, layer = (made(system, name, options) for system in ("linen", "nnx"))
    variables = jax.eval_shape(linen.init, KEY, X)
    graph, state = nnx.split(layer)

    def both(variables: Any, state: Any, x: Any) -> Any:
        y = linen.apply(variables, x, mutable=["batch_stats"])
        return y, nnx.merge(graph, state)(x)

    x = jax.ShapeDtypeStruct(export.symbolic_shape(f"2*b, h, w, {X.shape[-1]}"), X.dtype)
    program = export.export(jax.jit(both), platforms=PLATFORMS)(variables, state, x)
    assert program.out_avals[0].shape[1:] == x.shape[1:]
