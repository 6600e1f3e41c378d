"""jit over a mesh, without an axis name: the values of one device, and no activation gathered."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxnorm as jn
from tests.calls import ELSEWHERE, MASK, MASKS, arguments, functions, leaves, parameters
from tests.cases import draw
from tests.oracle import assert_close
from tests.selecting import thorough_but

SHAPE = (16, 8, 4, 8)
SPECS = {
    "batch": P("a"),
    "batch and rows": P("a", "b"),
    "channels": P(None, None, None, "a"),
    "batch and channels": P("a", None, None, "b"),
}
NORMS: dict[str, Callable[..., Any]] = {
    "batch": lambda x, scale, bias, stats, mask: jn.batch_norm(x, stats, scale, bias),
    "batch, masked": lambda x, scale, bias, stats, mask: jn.batch_norm(
        x, stats, scale, bias, mask=mask
    ),
    "layer": lambda x, scale, bias, stats, mask: jn.layer_norm(x, scale, bias),
    "rms": lambda x, scale, bias, stats, mask: jn.rms_norm(x, scale, mask=mask),
    "group": lambda x, scale, bias, stats, mask: jn.group_norm(x, scale, bias, num_groups=4),
    "instance": lambda x, scale, bias, stats, mask: jn.instance_norm(x, scale, bias, mask=mask),
}
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def step(norm: str, dy: jax.Array, *arguments: Any) -> Any:
    """Output, running statistics if any, and gradients of x, scale and bias."""
    x, scale, bias, *rest = arguments

    def f(x: Any, scale: Any, bias: Any) -> Any:
        out = NORMS[norm](x, scale, bias, *rest)
        return out if isinstance(out, tuple) else (out, ())

    y, pull, stats = jax.vjp(f, x, scale, bias, has_aux=True)
    return y, stats, pull(dy)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_mesh_changes_nothing(norm: str, spec: str, kind: AxisType) -> None:
    """Sharding x, and the parameters along its channels, does not change the results."""
    rng = np.random.default_rng(0)
    x, dy = (draw(rng, SHAPE, "float32") for _ in range(2))
    scale, bias = (draw(rng, (8,), "float32") for _ in range(2))
    mask = rng.random((*SHAPE[:-1], 1)) < 0.7
    where = (*SPECS[spec], None, None, None)[:4]
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind,) * 2)

    def put(a: Any, *spec: Any) -> jax.Array:
        return jax.device_put(jnp.asarray(a), NamedSharding(mesh, P(*spec)))

    one_device = step(
        norm,
        *map(jnp.asarray, (dy, x, scale, bias)),
        jn.init_running_stats(8),
        jnp.asarray(mask),
    )
    stats = jax.tree.map(lambda a: put(a, where[3]), jn.init_running_stats(8))
    split = put(dy, *where), put(x, *where), put(scale, where[3]), put(bias, where[3])
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, static_argnums=0).lower(norm, *split, stats, put(mask, *where[:3]))
        compiled = compiled.compile()
        got = compiled(*split, stats, put(mask, *where[:3]))
    for ours, want in zip(jax.tree.leaves(got), jax.tree.leaves(one_device), strict=True):
        assert_close(np.asarray(ours), np.float64(want), 2e-5)
    communication = set(re.findall(rf" ({COLLECTIVES})(?:-start)?\(", compiled.as_text() or ""))
    assert communication <= {"all-reduce"}


def test_every_axis_is_split() -> None:
    """Rows and channels can be split over different explicit axes of a mesh."""
    rng = np.random.default_rng(1)
    x, dy = (draw(rng, (16, 8), "float32") for _ in range(2))
    scale, bias = (draw(rng, (8,), "float32") for _ in range(2))
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)

    def run(put: Callable[..., jax.Array]) -> Any:
        stats = jax.tree.map(lambda a: put(a, "b"), jn.init_running_stats(8))
        split = put(dy, "a", "b"), put(x, "a", "b"), put(scale, "b"), put(bias, "b")
        return jax.jit(step, static_argnums=0)("batch", *split, stats, None)

    want = run(lambda a, *spec: jnp.asarray(a))
    with jax.set_mesh(mesh):
        got = run(lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec))))
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(np.asarray(ours), np.float64(theirs), 2e-5)


# --- replicated parameters and state, sharded activation ------------------------------------------

MESHED = [name for name in functions("feature_axes") if name not in ELSEWHERE]
MESHED += ["spectral_norm", "conv_spectral_norm"]
LARGE = {"x", "y", "kernel", "style", "query", "key"}


@pytest.mark.sampled
@pytest.mark.parametrize("axis", [0, -1], ids=["batch", "channels"])
@pytest.mark.parametrize("name", thorough_but(MESHED, *MESHED[::2]))
def test_small_arrays_need_not_be_split(name: str, axis: int) -> None:
    """Results and gradients match one device, and each gradient is sharded like its input."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    given = arguments(name)
    given |= {"mask": MASKS.get(name, MASK)} if "mask" in parameters(name) else {}
    # A small epsilon would amplify rounding where all unmasked values of a row are equal.
    given |= {"epsilon": 0.1} if "epsilon" in parameters(name) else {}
    options = {n: v for n, v in given.items() if isinstance(v, bool | int | float)}
    given = {n: v for n, v in given.items() if n not in options}

    def placed(name: str, a: Any) -> jax.Array:
        split = {axis % a.ndim: ("a", "b")[axis]} if name in LARGE else {}
        spec = [split.get(i) if n % 4 == 0 else None for i, n in enumerate(a.shape)]
        return jax.device_put(jnp.asarray(a), NamedSharding(mesh, P(*spec)))

    def of(given: Any) -> Any:
        def f(given: Any) -> Any:
            out = getattr(jn, name)(**given, **options)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out)), out

        return jax.grad(f, allow_int=True, has_aux=True)(given)

    want = jax.jit(of)(jax.tree.map(jnp.asarray, given))
    split = {n: jax.tree.map(partial(placed, n), v) for n, v in given.items()}
    with jax.set_mesh(mesh):
        got = jax.jit(of)(split)
        pairs = zip(jax.tree.leaves(split), jax.tree.leaves(got[0]), strict=True)
        types = [[jax.typeof(a).sharding for a in pair] for pair in pairs if numbers(pair[1])]
    assert all(given == gradient for given, gradient in types)
    # Outside set_mesh, only the types of the large arrays name the mesh.
    unplaced = {n: v for n, v in given.items() if n not in LARGE}
    for result in (got, jax.jit(of)({**split, **unplaced})):
        for ours, theirs in zip(numbers(result), numbers(want), strict=True):
            assert_close(np.asarray(ours), np.float64(theirs), 5e-5)


def numbers(tree: Any) -> list[Any]:
    """The leaves of a gradient, except those of integers."""
    return [a for a in leaves(tree) if a.dtype != jax.dtypes.float0]


@pytest.mark.parametrize("spec", [P("b", None), P(None, "b")], ids=str)
def test_whitening_statistics_keep_their_sharding(spec: P) -> None:
    """Split statistics give the values of one device, and stay split, whatever the sharding of x."""
    x = draw(np.random.default_rng(2), (16, 4), "float32")
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    run = jax.jit(jn.iterative_whitening)
    want = run(x, jn.init_whitening(4))
    with jax.set_mesh(mesh):
        specs = P(spec[1]), spec
        stats = jn.WhiteningStats(*map(jax.device_put, jn.init_whitening(4), specs))
        got = run(jax.device_put(x, P("a", "b")), stats)
        assert [jax.typeof(a).sharding.spec for a in got[1]] == list(specs)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(np.asarray(ours), np.float64(theirs), 2e-5)


OVER_BATCH = [n for n in MESHED if {"axis_name", "stats"} <= parameters(n).keys()]
OVER_BATCH.remove("tracked_instance_norm")  # its axis_name is for parts of an example


@pytest.mark.parametrize("name", OVER_BATCH)
def test_channels_are_split_beside_a_mapped_axis(name: str) -> None:
    """shard_map may map one axis of a mesh while another, which is explicit, splits the channels."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    given = arguments(name)
    x = given.pop("x")

    def of(x: Any, axis_name: str | None) -> Any:
        y, *_ = jax.tree.leaves(getattr(jn, name)(x, **given, axis_name=axis_name))
        return y

    def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(f(x)))))

    rows = P("a")
    mapped = jax.shard_map(
        partial(of, axis_name="a"), mesh=mesh, in_specs=rows, out_specs=rows, axis_names={"a"}
    )
    want = gradient(partial(of, axis_name=None))(jnp.asarray(x))
    with jax.set_mesh(mesh):
        split = P("a", *[None] * (x.ndim - 2), "b")
        got = gradient(mapped)(jax.device_put(jnp.asarray(x), NamedSharding(mesh, split)))
    assert_close(np.asarray(got), np.float64(want), 5e-5)


@pytest.mark.parametrize("norm", ["batch, masked", "rms", "instance"])
def test_only_the_mask_is_split(norm: str) -> None:
    """An x that was not placed is split as its mask is, also outside set_mesh."""
    rng = np.random.default_rng(3)
    x, dy = (jnp.asarray(draw(rng, SHAPE, "float32")) for _ in range(2))
    mask = jnp.asarray(rng.random((*SHAPE[:-1], 1)) < 0.7)
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Explicit,))
    split = jax.device_put(mask, NamedSharding(mesh, P("a")))
    run = jax.jit(
        lambda mask: step(norm, dy, x, jnp.ones(8), jnp.ones(8), jn.init_running_stats(8), mask)
    )
    for got, want in zip(jax.tree.leaves(run(split)), jax.tree.leaves(run(mask)), strict=True):
        assert_close(np.asarray(got), np.float64(want), 2e-5)


def test_groups_are_split_outside_set_mesh() -> None:
    """The statistics of groups are repeated on the mesh that x names."""
    x = jnp.asarray(draw(np.random.default_rng(4), SHAPE, "float32"))
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Explicit,))
    split = jax.device_put(x, NamedSharding(mesh, P(None, None, None, "a")))
    run = jax.jit(lambda x: jn.group_norm(x, jnp.ones(8), jnp.ones(8), num_groups=2))
    assert_close(np.asarray(run(split)), np.float64(run(x)), 2e-5)
