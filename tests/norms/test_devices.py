"""Synchronized batch norm: every way to map over devices matches the whole batch on one device."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxnorm as jn
from tests.cases import EPSILON, MOMENTUM, Case, draw
from tests.oracle import BatchNorm, Outputs, Primals, assert_close
from tests.selecting import thorough_but

SHAPE = (16, 5, 4, 3)
NAMES = ("a", "b")  # a 4 × 2 mesh


def uneven() -> np.ndarray:
    """Very different counts per device: the first has none, the second one value, the last all."""
    mask = (
        np.random.default_rng(0).random((*SHAPE[:-1], 1))
        < np.linspace(0, 1, 16)[:, None, None, None]
    )
    mask[:4] = False
    mask[3, 2, 2] = True
    mask[14:] = True
    return mask


MASKS = {
    "unmasked": None,
    "uneven": uneven(),
    "examples": (np.arange(16) < 9)[:, None, None, None],
    "one_device": (np.arange(16) == 5)[:, None, None, None],
    "nothing": np.zeros((16, 1, 1, 1), bool),
}


def mesh() -> jax.sharding.Mesh:
    """All 8 devices, with two axis names."""
    return jax.make_mesh((4, 2), NAMES, axis_types=(AxisType.Auto,) * 2)


def local(names: Any) -> Callable[..., Outputs]:
    """Batch norm of one device's part, synchronized over ``names``."""

    def f(x: Any, mask: Any, mean: Any, var: Any, scale: Any, bias: Any) -> Outputs:
        y, stats = jn.batch_norm(
            x,
            jn.RunningStats(mean, var),
            scale,
            bias,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            unbiased=True,
            mask=mask,
            axis_name=names,
        )
        return Outputs(y, stats.mean, stats.var)

    return f


def split(a: Any, *sizes: int) -> Any:
    """Splits the batch axis of ``a`` over devices; None stays None."""
    return None if a is None else jnp.reshape(a, (*sizes, -1, *a.shape[1:]))


Mapped = Callable[..., Outputs]  # (x, mask, mean, var, scale, bias) of the whole batch


def by_vmap(*args: Any) -> Outputs:
    """Maps over one vmap axis."""
    x, mask, *rest = args
    f = jax.vmap(local("a"), in_axes=(0, 0, None, None, None, None), axis_name="a")
    y, mean, var = f(split(x, 8), split(mask, 8), *rest)
    return Outputs(y.reshape(x.shape), mean[3], var[3])


def by_two_vmaps(*args: Any) -> Outputs:
    """Maps over two named vmap axes."""
    x, mask, *rest = args
    axes = (0, 0, None, None, None, None)
    f = jax.vmap(local(NAMES), in_axes=axes, axis_name="a")
    f = jax.vmap(f, in_axes=axes, axis_name="b")
    y, mean, var = f(split(x, 2, 4), split(mask, 2, 4), *rest)
    return Outputs(y.reshape(x.shape), mean[1, 2], var[0, 3])


def by_pmap(*args: Any) -> Outputs:
    """Maps over all devices with pmap."""
    x, mask, *rest = args
    f = jax.pmap(local("a"), in_axes=(0, None if mask is None else 0, *[None] * 4), axis_name="a")
    y, mean, var = f(split(x, 8), split(mask, 8), *rest)
    return Outputs(y.reshape(x.shape), mean[3], var[3])


def by_shard_map(check_vma: bool) -> Mapped:
    """Maps over a mesh with two axis names, using shard_map."""

    def f(*args: Any) -> Outputs:
        specs = (P(NAMES), P(NAMES), P(), P(), P(), P())
        out = Outputs(P(NAMES), P(), P())
        return jax.shard_map(
            local(NAMES), mesh=mesh(), in_specs=specs, out_specs=out, check_vma=check_vma
        )(*args)

    return f


def by_mesh(*args: Any) -> Outputs:
    """Uses jit over a mesh with a sharded batch, without any map."""
    x, mask, *rest = args
    sharded = NamedSharding(mesh(), P(NAMES))
    x = jax.lax.with_sharding_constraint(x, sharded)
    return local(None)(x, mask, *rest)


def by_shard_map_of_vmap(*args: Any) -> Outputs:
    """Maps over a device axis outside and a vmap axis inside."""
    x, mask, *rest = args

    def part(x: Any, mask: Any, *rest: Any) -> Outputs:
        axes = (0, 0, None, None, None, None)
        f = jax.vmap(local(("a", "b", "v")), in_axes=axes, axis_name="v", out_axes=Outputs(0, 0, 0))
        y, mean, var = f(split(x, 2), split(mask, 2), *rest)
        return Outputs(y.reshape(x.shape), mean[0], var[1])

    specs = (P(NAMES), P(NAMES), P(), P(), P(), P())
    out = Outputs(P(NAMES), P(), P())
    # with the check, shard_map refuses JAX's own psum over both kinds of axes
    return jax.shard_map(part, mesh=mesh(), in_specs=specs, out_specs=out, check_vma=False)(
        x, mask, *rest
    )


MAPPED: dict[str, Mapped] = {
    "vmap": by_vmap,
    "two_vmaps": by_two_vmaps,
    "pmap": by_pmap,
    "shard_map": by_shard_map(True),
    "shard_map_unchecked": by_shard_map(False),
    "shard_map_of_vmap": by_shard_map_of_vmap,
    "mesh": by_mesh,
}


def data() -> tuple[Primals, Primals, Outputs]:
    """Primals, tangents and cotangents; every device's part has a different mean."""
    case = Case("devices", SHAPE)
    at = case.primals()
    at = at._replace(x=at.x + np.arange(16, dtype=np.float32)[:, None, None, None])
    rng = case.rng()
    cotangents = Outputs(*(draw(rng, s, "float32") for s in (SHAPE, (3,), (3,))))
    return at, case.tangents(), cotangents


def check(outputs: Any, gradients: Any, mask: Any, tangents: Any = None) -> None:
    """Checks all results against the oracle for the whole batch."""
    at, along, cotangents = data()
    norm = BatchNorm(-1, MOMENTUM, EPSILON, unbiased=True, mask=mask)
    for got, want in zip(outputs, norm.value(at), strict=True):
        assert_close(got, want)
    for got, want in zip(gradients, norm.gradient(at, cotangents), strict=True):
        assert_close(got, want, 5e-5)
    if tangents is not None:
        for got, want in zip(tangents, norm.tangent(at, along), strict=True):
            assert_close(got, want, 5e-5)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "mask"),
    [
        (n, m)
        for n in MAPPED
        for m in MASKS
        if m in ("uneven", "nothing") or n.startswith("shard_map")
    ],
)
def test_derivatives_of_a_map(name: str, mask: str) -> None:
    """Outputs, JVP and VJP of the mapped function match those of the whole batch on one device."""
    at, along, cotangents = data()
    m = MASKS[mask]

    def f(at: Primals) -> Outputs:
        return MAPPED[name](at.x, m, *at[1:])

    def everything(at: Primals, along: Primals, cotangents: Outputs) -> Any:
        outputs, pull = jax.vjp(f, at)
        return outputs, pull(cotangents)[0], jax.jvp(f, (at,), (along,))[1]

    outputs, gradients, tangents = jax.jit(everything)(at, along, cotangents)
    check(outputs, gradients, m, tangents)


@pytest.mark.sampled
@pytest.mark.parametrize("mask", ["unmasked", "uneven"])
@pytest.mark.parametrize("name", ["vmap", "pmap", "shard_map", "shard_map_unchecked"])
def test_map_of_gradients(name: str, mask: str) -> None:
    """Gradients taken on each device, and summed for parameters, match the whole batch."""
    at, _, cotangents = data()
    m = MASKS[mask]
    checked = name == "shard_map"  # JAX itself sums the gradients of replicated values there
    axis = "a" if name in ("vmap", "pmap") else NAMES

    def one(x: Any, mask: Any, dy: Any, mean: Any, var: Any, scale: Any, bias: Any) -> Any:
        f = local(axis)
        outputs, pull = jax.vjp(lambda *at: f(at[0], mask, *at[1:]), x, mean, var, scale, bias)
        share = 1 if checked else 1 / 8  # each device adds its share of a single loss
        dx, *rest = pull(Outputs(dy, *(share * jnp.asarray(c) for c in cotangents[1:])))
        if not checked:
            rest = jax.lax.psum(rest, axis)
        return outputs, Primals(dx, *rest)

    if name in ("vmap", "pmap"):
        none = None if m is None and name == "pmap" else 0
        mapper = jax.vmap if name == "vmap" else jax.pmap
        f = jax.jit if name == "vmap" else lambda f: f
        f = f(mapper(one, in_axes=(0, none, 0, None, None, None, None), axis_name="a"))
        outputs, gradients = f(split(at.x, 8), split(m, 8), split(cotangents.y, 8), *at[1:])
        outputs = Outputs(outputs.y.reshape(SHAPE), outputs.mean[5], outputs.var[5])
        gradients = Primals(gradients.x.reshape(SHAPE), *(g[5] for g in gradients[1:]))
    else:
        specs = (P(NAMES),) * 3 + (P(),) * 4
        out = (Outputs(P(NAMES), P(), P()), Primals(P(NAMES), P(), P(), P(), P()))
        f = jax.shard_map(one, mesh=mesh(), in_specs=specs, out_specs=out, check_vma=checked)
        outputs, gradients = jax.jit(f)(at.x, m, cotangents.y, *at[1:])
    check(outputs, gradients, m)


@pytest.mark.parametrize("check_vma", [True, False])
def test_second_order_through_shard_map(check_vma: bool) -> None:
    """The gradient of a gradient through the all-reduce matches the whole batch."""
    at = Primals(*map(jnp.asarray, data()[0]))
    w = jnp.asarray(draw(np.random.default_rng(5), SHAPE, "float32"))

    def directional(f: Mapped) -> Any:
        def loss(x: Any) -> Any:
            y, mean, var = f(x, None, *at[1:])
            return (w * y**2).sum() + (mean * var).sum()

        return jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (w,))[1])(at.x)

    whole = directional(local(None))
    assert_close(directional(by_shard_map(check_vma)), np.float64(whole), 2e-4)


def test_variance_is_stable_across_devices() -> None:
    """With mean/std = 1e4 and different means per device, the variance is accurate to 1e-3."""
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal(SHAPE)).astype(np.float32)
    x[8:] += np.float32(2)
    m = jax.vmap(lambda x: jn.moments(x, (0, 1, 2), axis_name="d"), axis_name="d")(split(x, 8))
    want = x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(m.var[2].ravel(), want, rtol=1e-3)


def test_mean_of_means_is_not_enough() -> None:
    """With counts of 1 and 79, moments are weighted by count; a mean of means would not be."""
    x = np.concatenate([np.full((1, 1), 10.0), np.zeros((79, 1))]).astype(np.float32)
    padded = np.zeros((2, 79, 1), np.float32)
    padded[0, :1], padded[1] = x[:1], x[1:]
    mask = np.arange(79)[None, :, None] < np.array([1, 79])[:, None, None]
    f = jax.vmap(lambda x, m: jn.moments(x, 0, mask=m, axis_name="d"), axis_name="d")
    m = f(padded, mask)
    np.testing.assert_allclose(m.mean.ravel(), [x.mean()] * 2, rtol=1e-6)
    np.testing.assert_allclose(m.var.ravel(), [x.var()] * 2, rtol=1e-5)
    np.testing.assert_array_equal(m.count.ravel(), [80, 80])


# --- groups of devices ---------------------------------------------------------------------------

GROUPS = {"equal": [[0, 3], [1, 2], [7, 5], [6, 4]], "unequal": [[5], [0, 1, 2, 7], [6, 3, 4]]}


def grouped(name: str, groups: Any, x: Any, mask: Any) -> Any:
    """The gradient of a loss of batch norm's outputs and statistics on each device, within its group."""
    w = jnp.asarray(draw(np.random.default_rng(5), x.shape, "float32"))

    def one(x: Any, mask: Any, w: Any) -> Any:
        def loss(x: Any) -> Any:
            options: Any = {"mask": mask, "axis_name": "a", "axis_index_groups": groups}
            y, stats = jn.batch_norm(x, jn.init_running_stats(3), momentum=0.0, **options)
            return (w * y**2).sum(), stats

        gradient, stats = jax.grad(loss, has_aux=True)(x)
        return gradient, jax.tree.map(lambda a: a[None], stats.mean)

    if name in ("vmap", "pmap"):
        mapper = jax.vmap if name == "vmap" else jax.pmap
        return mapper(one, axis_name="a")(x, mask, w)
    checked = name == "shard_map"
    on_eight = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    f = jax.shard_map(one, mesh=on_eight, in_specs=P("a"), out_specs=P("a"), check_vma=checked)
    gradient, mean = jax.jit(f)(*(a.reshape(-1, *a.shape[2:]) for a in (x, mask, w)))
    return gradient.reshape(x.shape), mean.reshape(8, 1, 3)


@pytest.mark.sampled
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(
    "name", thorough_but(["vmap", "pmap", "shard_map", "shard_map_unchecked"], "vmap", "shard_map")
)
def test_groups_of_devices(name: str, groups: str) -> None:
    """Each group gets the statistics and gradient of its own devices, even with NaN in another group."""
    rng = np.random.default_rng(0)
    x = rng.normal(np.arange(8)[:, None, None], size=(8, 4, 3)).astype(np.float32)
    mask = rng.random((8, 4, 1)) < 0.7
    x[5] = np.nan  # NaN in one group reaches no other
    mask[5] = groups == "unequal"
    w = draw(np.random.default_rng(5), x.shape, "float32")
    gradient, mean = grouped(name, GROUPS[groups], jnp.asarray(x), jnp.asarray(mask))
    for group in GROUPS[groups]:
        if groups == "unequal" and 5 in group:
            assert np.isnan(np.asarray(mean)[group]).all()
            continue
        part = jnp.asarray(x[group].reshape(-1, 3))
        counted = jnp.asarray(mask[group].reshape(-1, 1))

        def loss(part: Any, counted: Any = counted, group: Any = group) -> Any:
            y, stats = jn.batch_norm(part, jn.init_running_stats(3), mask=counted, momentum=0.0)
            return (w[group].reshape(-1, 3) * y**2).sum(), stats

        want, stats = jax.grad(loss, has_aux=True)(part)
        assert_close(gradient[np.array(group)].reshape(-1, 3), np.float64(want), 1e-4)
        for device in group:
            assert_close(mean[device, 0], np.float64(stats.mean))


# --- compiled programs ---------------------------------------------------------------------------

COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def collectives(compiled: str) -> list[tuple[str, int]]:
    """Name and number of elements of each result of a collective in an HLO text."""
    found = []
    for types, op in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", compiled):
        for dims in re.findall(r"\w+\[([\d,]*)\]", types):
            found.append((op, int(np.prod([int(d) for d in dims.split(",") if d] or [1]))))
    return found


def step_text(f: Mapped, shape: tuple[int, ...], masked: bool) -> str:
    """HLO of a training step's forward and backward passes over a sharded batch."""
    at = Case("compiled", shape).primals()
    sharded = NamedSharding(mesh(), P(NAMES))
    x = jax.device_put(at.x, sharded)
    mask = jax.device_put(np.ones((shape[0],) + (1,) * (len(shape) - 1), bool), sharded)
    rest = jax.device_put(at[1:], NamedSharding(mesh(), P()))

    def step(x: Any, mask: Any, dy: Any, *rest: Any) -> Any:
        outputs, pull = jax.vjp(lambda x, *r: f(x, mask if masked else None, *r), x, *rest)
        return outputs, pull(Outputs(dy, *map(jnp.ones_like, outputs[1:])))

    return jax.jit(step).lower(x, mask, x, *rest).compile().as_text() or ""


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("check_vma", [True, False])
def test_number_of_all_reduces(check_vma: bool, masked: bool) -> None:
    """The forward pass takes one all-reduce, and so does the backward pass, parameters included."""
    text = step_text(by_shard_map(check_vma), (64, 12), masked)
    assert re.findall(rf" ({COLLECTIVES})(?:-start)?\(", text) == ["all-reduce"] * 2


COMPILED = {k: MAPPED[k] for k in ("shard_map", "shard_map_unchecked")} | {"mesh": local(None)}


@pytest.mark.sampled
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(64, 12), (16, 12, 12, 12)], ids=str)
@pytest.mark.parametrize("name", COMPILED)
def test_no_activation_is_communicated(name: str, shape: tuple[int, ...], masked: bool) -> None:
    """Only a few feature vectors are all-reduced: nothing is gathered, and no payload grows with x.

    There are at most eight in total, for the forward pass, the backward pass and the parameters.
    """
    found = collectives(step_text(COMPILED[name], shape, masked))
    assert found, "a synced norm has to communicate: the search found nothing"
    assert {op for op, _ in found} == {"all-reduce"}
    assert max(size for _, size in found) <= 3 * shape[-1]
    assert sum(size for _, size in found) <= 8 * shape[-1]


def test_search_for_collectives_can_fail() -> None:
    """The search finds the collective in a program that gathers the activation."""

    def gathering(x: Any, mask: Any, *rest: Any) -> Outputs:
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh(), P()))
        return local(None)(x, mask, *rest)

    found = collectives(step_text(gathering, (64, 12), False))
    assert ("all-gather", 64 * 12) in found
