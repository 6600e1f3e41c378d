"""Norms in JAX's own primitives: the same values and derivatives, for converters and interpreters."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import jet

import jaxnorm as jn
from jaxnorm import linen as jnl
from tests.calls import arguments, functions, leaves
from tests.programs import equations

WITHOUT_STATISTICS = (
    *("act_norm", "act_norm_inverse", "batch_norm_inference", "batch_renorm_inference", "derf"),
    *(
        "dynamic_tanh",
        "input_norm_inference",
        "input_norm_inverse",
        "iterative_whitening_inference",
        "mean_only_batch_norm_inference",
        "modulate",
    ),
)
"""Norms that take no sums over their input."""
LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "batch": lambda library: library.BatchNorm(use_running_average=False),
    "evaluation": lambda library: library.BatchNorm(use_running_average=True),
    "layer": lambda library: library.LayerNorm(),
    "rms": lambda library: library.RMSNorm(),
    "group": lambda library: library.GroupNorm(num_groups=4),
    "instance": lambda library: library.InstanceNorm(),
}
X = jax.random.normal(jax.random.key(0), (3, 4, 4, 8))


def foreign(f: Callable[..., Any], *args: Any) -> set[str]:
    """The primitives that only jaxnorm defines, and those that wrap them."""
    found = {str(eqn.primitive) for eqn in equations(jax.make_jaxpr(f)(*args).jaxpr)}
    return {name for name in found if name.startswith(("norm_", "remat", "optimization"))}


def applied(library: Any, layer: str) -> Callable[[jax.Array], jax.Array]:
    """A layer with fresh variables, as a function of its input."""
    module = LAYERS[layer](library)
    variables = module.init(jax.random.key(0), X)
    return lambda x: module.apply(variables, x, mutable=["batch_stats"])[0]  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(
    "name", sorted({*functions("x"), *functions("kernel")} - {"init_spectral_norm"})
)
def test_values_and_gradients_are_the_same(name: str) -> None:
    """Values and gradients agree up to rounding, and the portable program has no primitive of jaxnorm."""
    given = arguments(name)
    floats = {k: v for k, v in given.items() if _is_floating(v)}

    def step(context: AbstractContextManager[None], floats: Any) -> Any:
        with context:
            y, pull = jax.vjp(lambda a: leaves(getattr(jn, name)(**{**given, **a})), floats)
            dy = jax.tree.map(_weights, y)
            return y, pull(dy)

    usual = jax.jit(lambda a: step(nullcontext(), a))(floats)
    portable = jax.jit(lambda a: step(jn.portable(), a))(floats)
    for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(portable), strict=True):
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-4 * np.abs(a).max(initial=0))
    with jn.portable():
        assert not foreign(lambda a: getattr(jn, name)(**{**given, **a}), floats)


@pytest.mark.parametrize("name", WITHOUT_STATISTICS)
def test_without_statistics_a_norm_is_portable_anyway(name: str) -> None:
    """Norms without statistics need no `portable` as long as they are not differentiated."""
    given = arguments(name)
    floats = {k: v for k, v in given.items() if _is_floating(v)}
    assert not foreign(lambda a: getattr(jn, name)(**{**given, **a}), floats)


def test_programs_of_both_kinds_are_kept_apart() -> None:
    """Under jit, portable and usual programs do not share a cache entry, whichever is traced first."""
    f = jax.jit(jn.layer_norm)
    for _ in range(2):
        assert foreign(f, X)
        with jn.portable():
            assert not foreign(f, X)


@pytest.mark.parametrize("layer", LAYERS)
def test_taylor_series_are_those_of_flax(layer: str) -> None:
    """`jax.experimental.jet` works through every layer for which it works in Flax."""
    directions = [jnp.cos(3 * X), jnp.sin(5 * X) / 3]

    def series(library: Any) -> Any:
        f = applied(library, layer)
        return jax.jit(lambda x: jet.jet(f, (x,), (directions,))[1])(X)

    with jn.portable():
        ours = series(jnl)
    for a, b in zip(ours, series(nn), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.usefixtures("users_promotion")
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_laplacians_are_those_of_flax(layer: str, caplog: pytest.LogCaptureFixture) -> None:
    """Forward Laplacians match Flax's, without the Hessian fallback that folx warns about."""
    folx = pytest.importorskip("folx", reason="folx is not installed")

    def laplacian(library: Any) -> Any:
        f = applied(library, layer)
        return folx.forward_laplacian(lambda z: (f(z.reshape(X.shape)) ** 3).sum())(X.ravel())

    with jn.portable():
        ours = laplacian(jnl).laplacian
    assert not [record for record in caplog.records if "registry" in record.message]
    np.testing.assert_allclose(ours, laplacian(nn).laplacian, rtol=1e-4)


class Network(nn.Module):
    """A network with one norm of each kind."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns four numbers for each example."""
        x = nn.relu(jnl.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        x = nn.silu(jnl.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(jnl.InstanceNorm()(x)).mean((1, 2))
        return nn.Dense(4)(jnl.RMSNorm()(jnl.LayerNorm()(x)))


@pytest.mark.thorough
@pytest.mark.usefixtures("users_promotion")
@pytest.mark.parametrize("layer", [*LAYERS, "network"])
def test_onnx(layer: str) -> None:
    """jax2onnx converts portable norms, and ONNX Runtime computes the same values."""
    jax2onnx = pytest.importorskip("jax2onnx", reason="jax2onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    try:  # jax2onnx 0.17 reads internals that jax 0.12 no longer has
        jax2onnx.to_onnx(jax.jit(jnp.tanh), [jax.ShapeDtypeStruct(X.shape, X.dtype)])
    except AttributeError as error:
        pytest.skip(f"jax2onnx does not work with jax {jax.__version__}: {error}")
    if layer == "network":
        network = Network()
        variables = network.init(jax.random.key(0), X)
        f: Callable[..., Any] = lambda x: network.apply(variables, x)  # noqa: E731
    else:
        f = applied(jnl, layer)
    with nullcontext() if layer == "evaluation" else jn.portable():
        model = jax2onnx.to_onnx(f, [jax.ShapeDtypeStruct(X.shape, X.dtype)])
    session = runtime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: np.asarray(X)})
    np.testing.assert_allclose(y, f(X), atol=1e-5)


def _is_floating(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(
        isinstance(a, np.ndarray | np.generic | jax.Array) and jnp.issubdtype(a.dtype, jnp.inexact)
        for a in leaves
    )


def _weights(y: jax.Array) -> Any:
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return np.zeros(y.shape, jax.dtypes.float0)
    return jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
