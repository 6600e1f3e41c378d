"""Results match the whole batch for any split over devices, any mask and any transform."""

from functools import partial
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxnorm as jn
from tests.cases import EPSILON, MOMENTUM, Case, draw
from tests.oracle import BatchNorm, Outputs, Primals, assert_close

MAPS = ("vmap", "pmap", "shard_map", "shard_map_unchecked", "mesh")


class Split(NamedTuple):
    """A batch split over devices: the transform, the mask, and which examples share statistics."""

    transform: str
    devices: int
    at: Primals
    mask: np.ndarray
    groups: list[list[int]] | None
    virtual_batch_size: int | None

    @property
    def parts(self) -> list[np.ndarray]:
        """The indices of the examples that share statistics."""
        numbers = np.arange(len(self.at.x))
        if self.virtual_batch_size is not None:
            return np.split(numbers, len(numbers) // self.virtual_batch_size)
        on_device = numbers.reshape(self.devices, -1)
        return [on_device[group].ravel() for group in self.groups or [[*range(self.devices)]]]


@st.composite
def splits(draw_one: Any) -> Split:
    """One to eight devices, uneven masks over NaN, any groups and any transform."""
    transform, devices = draw_one(st.sampled_from(MAPS)), draw_one(st.integers(1, 8))
    each, rows, channels = (draw_one(st.integers(1, 4)) for _ in range(3))
    dtype = draw_one(st.sampled_from(["float32", "bfloat16", "float16", "complex64"]))
    shape = (devices * each, rows, channels)
    rng = np.random.default_rng(draw_one(st.integers(0, 2**32 - 1)))
    counted = rng.random(devices).repeat(each)[:, None, None] ** 2  # few or none on some devices
    mask = rng.random((*shape[:2], 1)) < counted
    at = Case(f"{shape}{dtype}", shape, dtype=dtype).primals()
    values = at.x + (10 * rng.normal(size=devices)).repeat(each)[:, None, None].astype(at.x.dtype)
    at = at._replace(x=np.where(mask, values, np.asarray(np.nan, at.x.dtype)))
    groups, virtual = None, None
    sharing = draw_one(st.sampled_from(["all", "virtual"] + ["groups"] * (transform != "mesh")))
    if sharing == "groups":
        numbers = rng.integers(0, 3, devices)  # the group of each device
        groups = [np.flatnonzero(numbers == k).tolist() for k in np.unique(numbers)]
    if sharing == "virtual":
        sizes = [k for k in range(1, each + 1) if each % k == 0]
        sizes += [each * k for k in range(2, devices + 1) if devices % k == 0]
        virtual = draw_one(st.sampled_from(sizes))
    return Split(transform, devices, at, mask, groups, virtual)


def mapped(split: Split) -> Any:
    """The function of x, mask, scale and bias of all examples; it returns the statistics of every device."""
    on_devices = split.transform != "mesh"
    options: dict[str, Any] = {"momentum": MOMENTUM, "epsilon": EPSILON, "unbiased": True}
    options |= {"virtual_batch_size": split.virtual_batch_size}
    options |= {"axis_name": "d", "axis_index_groups": split.groups} if on_devices else {}

    def one(x: Any, mask: Any, scale: Any, bias: Any) -> Any:
        stats = jn.RunningStats(jnp.asarray(split.at.mean), jnp.asarray(split.at.var))
        y, stats = jn.batch_norm(x, stats, scale, bias, mask=mask, **options)
        return y, (stats.mean[None], stats.var[None])

    chosen = jax.devices()[: split.devices]
    mesh = jax.make_mesh((split.devices,), ("d",), (AxisType.Auto,), devices=chosen)

    def by_mesh(x: Any, mask: Any, *rest: Any) -> Any:
        sharded = NamedSharding(mesh, P("d"))
        return one(*(jax.lax.with_sharding_constraint(a, sharded) for a in (x, mask)), *rest)

    def stacked(mapper: Any) -> Any:
        def f(x: Any, mask: Any, *rest: Any) -> Any:
            parts = (a.reshape(split.devices, -1, *a.shape[1:]) for a in (x, mask))
            y, stats = mapper(one, in_axes=(0, 0, None, None), axis_name="d")(*parts, *rest)
            return y.reshape(x.shape), jax.tree.map(lambda a: a[:, 0], stats)

        return f

    if split.transform == "mesh":
        return by_mesh
    if split.transform in ("vmap", "pmap"):
        pmap = partial(jax.pmap, devices=chosen)
        return stacked(jax.vmap if split.transform == "vmap" else pmap)
    specs = {"in_specs": (P("d"), P("d"), P(), P()), "out_specs": P("d")}
    return jax.shard_map(one, mesh=mesh, check_vma=split.transform == "shard_map", **specs)


def check(split: Split) -> None:
    """Checks outputs, gradients and every device's running statistics against the oracle."""
    x, _, _, scale, bias = split.at
    dtype = "complex64" if x.dtype == np.complex64 else "float32"  # what x and scale promote to
    dy = draw(np.random.default_rng(3), x.shape, dtype)

    @jax.jit
    def step(x: Any, scale: Any, bias: Any) -> Any:
        f = mapped(split)
        y, pull, stats = jax.vjp(
            lambda x, *affine: f(x, jnp.asarray(split.mask), *affine), x, scale, bias, has_aux=True
        )
        return y, stats, pull(jnp.asarray(dy, y.dtype))

    y, (means, variances), gradients = step(x, scale, bias)
    wanted = Primals(np.zeros(x.shape, y.dtype), 0, 0, np.zeros(scale.shape), np.zeros(bias.shape))
    for part in split.parts:
        norm = BatchNorm(-1, MOMENTUM, EPSILON, unbiased=True, mask=split.mask[part])
        at = split.at._replace(x=x[part])
        assert_close(y[part], norm.value(at).y, 1e-4)
        nothing = Outputs(dy[part], np.zeros(scale.shape), np.zeros(scale.shape))
        gradient = norm.gradient(at, nothing)
        # Terms of about 1/sqrt(ε) cancel if a part has few unmasked elements.
        size = max(np.abs(gradient.x).max(initial=0.0), 1e-3)
        assert_close(gradients[0][part], gradient.x, 1e-4 * max(1.0, 1.0 / size))
        wanted = wanted._replace(
            scale=wanted.scale + gradient.scale, bias=wanted.bias + gradient.bias
        )
    assert_close(gradients[1], wanted.scale, 1e-4)
    assert_close(gradients[2], wanted.bias, 1e-4)
    together = split.parts if split.virtual_batch_size is None else [np.arange(len(x))]
    each = len(x) // split.devices
    for part in together:
        norm = BatchNorm(-1, MOMENTUM, EPSILON, unbiased=True, mask=split.mask[part])
        want = norm.value(split.at._replace(x=x[part]))
        for device in {0} if len(means) == 1 else set((part // each).tolist()):
            assert_close(means[device], want.mean)
            assert_close(variances[device], want.var)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(4))
def test_any_split(seed: int) -> None:
    """Results match the oracle for any devices, split, mask, dtype, groups, virtual batch and transform."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        deadline=None,
        max_examples=8,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(splits())
    def run(split: Split) -> None:
        check(split)

    run()
