"""Layer, RMS, group and instance norm, and norms of vectors and kernels, against a float64 oracle."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jaxnorm as jn
from tests.cases import draw
from tests.family import AXES, NORMS, Norm, of
from tests.oracle import assert_close, slope

OVER_DEVICES = ("layer", "rms", "l2", "group", "instance")


def masked(norm: Norm) -> dict[str, Any]:
    """The mask keyword argument of a norm, if it takes one."""
    return {} if norm.mask() is None else {"mask": jnp.asarray(norm.mask())}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "with_mask"),
    [(name, m) for name, norm in NORMS.items() for m in (False, True) if norm.takes_mask or not m],
)
def test_value_and_derivatives(name: str, with_mask: bool) -> None:
    """Values, and derivatives along a random direction in both modes, match the definition."""
    norm = NORMS[name]
    at, direction = norm.primals(), norm.primals(seed=1, mean=0.0)
    options = masked(norm) if with_mask else {}
    weights = np.random.default_rng(2).standard_normal(norm.shape).astype(np.float32)

    def expected(*arguments: Any) -> np.ndarray:
        return norm.oracle(*arguments, **options)

    @jax.jit
    def both_modes(at: Any, direction: Any) -> Any:
        ours = lambda *a: norm.ours(*a, **options)  # noqa: E731
        _, pull = jax.vjp(ours, *at)
        return *jax.jvp(ours, at, direction), pull(weights)

    y, tangent, gradients = both_modes(at, direction)
    np.testing.assert_allclose(y, expected(*at), atol=3e-5, rtol=1e-4)
    along = slope(expected, at, direction)
    np.testing.assert_allclose(tangent, along, atol=1e-4 * np.abs(along).max())
    pairs = zip(gradients, direction, strict=True)
    paired = sum(float(np.vdot(np.float64(g), d)) for g, d in pairs)
    size = np.linalg.norm(weights) * np.linalg.norm(along) / np.sqrt(weights.size)
    assert abs(paired - float(np.vdot(weights, along))) < 1e-3 * size


@pytest.mark.parametrize("name", AXES)
def test_epsilon(name: str) -> None:
    """ε is added to the variance, the mean square or the squared length, for any axes."""
    norm = AXES[name]
    at = norm.primals()
    y = jax.jit(lambda *at: norm.ours(*at, epsilon=0.7))(*at)
    assert_close(y, norm.oracle(*at, epsilon=0.7))


@pytest.mark.parametrize("name", [n for n, norm in NORMS.items() if norm.statistic == "variance"])
def test_large_mean(name: str) -> None:
    """With mean 1e4 and standard deviation 2, float32 is accurate enough."""
    norm = NORMS[name]
    at = norm.primals(mean=1e4)
    np.testing.assert_allclose(jax.jit(norm.ours)(*at), norm.oracle(*at), atol=1e-2)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NORMS)
def test_half_precision(name: str, dtype: str) -> None:
    """Statistics are float32; y is the float32 result, rounded once unless float32 is requested.

    The squares of this x overflow float16.
    """
    norm = NORMS[name]
    x, *parameters = norm.primals(mean=1.0, dtype=dtype)
    at = (jnp.asarray(x) * 256, *map(jnp.asarray, parameters))
    y, wide = jax.jit(lambda *at: (norm.ours(*at), norm.ours(*at, dtype=jnp.float32)))(*at)
    assert y.dtype == jnp.dtype(dtype)
    assert wide.dtype == jnp.float32
    assert_close(wide, norm.oracle(*at))
    # Half a unit in the last place, plus the difference between two compilations of float32 arithmetic.
    rounding = jnp.finfo(dtype)
    np.testing.assert_allclose(
        np.float32(y),
        wide,
        rtol=float(rounding.eps) * 0.501,
        atol=float(rounding.smallest_subnormal) + 1e-6,
    )


@pytest.mark.parametrize(
    "name", ["layer -1", "rms -1", "instance last", "group last", "l2 -1", "weight last"]
)
def test_complex_values(name: str) -> None:
    """A complex x has a complex mean and real squares."""
    norm = AXES[name]
    at = norm.primals(dtype="complex64")
    y = jax.jit(norm.ours)(*at)
    assert y.dtype == jnp.complex64
    assert_close(y, norm.oracle(*at))


@pytest.mark.parametrize("name", [name for name, norm in NORMS.items() if norm.takes_mask])
def test_padding_is_not_read(name: str) -> None:
    """NaN under the mask affects no other output and no gradient."""
    norm = NORMS[name]
    x, *parameters = norm.primals()
    mask = norm.mask()
    assert mask is not None
    padded = np.where(mask, x, np.float32(np.nan))

    def loss(x: Any, *parameters: Any) -> jax.Array:
        y = norm.ours(x, *parameters, mask=jnp.asarray(mask))
        return jnp.where(mask, y**2, 0).sum()

    clean = jax.jit(jax.value_and_grad(loss, range(1 + len(parameters))))
    (value, gradients), (other, others) = clean(x, *parameters), clean(padded, *parameters)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (jn.layer_norm, nn.LayerNorm()),
        (jn.group_norm, nn.GroupNorm()),
        (jn.instance_norm, nn.InstanceNorm()),
        (jn.rms_norm, nn.RMSNorm()),
    ],
    ids=["layer", "group", "instance", "rms"],
)
def test_defaults_are_those_of_flax(ours: Callable[..., jax.Array], theirs: Any) -> None:
    """With default arguments, results match those of Flax's layer with its defaults."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 64)) / 100  # epsilon matters
    scale, bias = jax.random.normal(jax.random.key(1), (2, 64))
    parameters = (scale,) if ours is jn.rms_norm else (scale, bias)
    named = dict(zip(("scale", "bias"), parameters, strict=False))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = jax.jit(theirs.apply)({"params": named}, x)
    np.testing.assert_allclose(jax.jit(ours)(x, *parameters), expected, atol=2e-5)


def test_scale_offset() -> None:
    """scale_offset=1 adds 1 to the scale before the result is rounded to the output's dtype."""
    x = jax.random.normal(jax.random.key(0), (3, 8))
    scale = jnp.full(8, 2.0**-10, jnp.bfloat16)
    y = jn.rms_norm(x.astype(jnp.bfloat16), scale, scale_offset=1.0, dtype=jnp.float32)
    plain = jn.rms_norm(x.astype(jnp.bfloat16), dtype=jnp.float32)
    np.testing.assert_allclose(y, plain * (1 + 2.0**-10), rtol=1e-6)


@pytest.mark.parametrize("name", ["rms_norm", "modulate"])
def test_a_traced_scale_offset(name: str) -> None:
    """A traced offset gives the same value, and its derivative is the sum of the scales' derivatives."""
    x, scale = jax.random.normal(jax.random.key(0), (2, 3, 8))
    norm = getattr(jn, name)

    @jax.jit
    def both(offset: Any) -> Any:
        def loss(scale: jax.Array, offset: Any) -> jax.Array:
            return (norm(x, scale, scale_offset=offset) ** 2).sum()

        known = norm(x, scale, scale_offset=0.7)
        return known, norm(x, scale, scale_offset=offset), jax.grad(loss, (0, 1))(scale, offset)

    scale = scale[0] if name == "rms_norm" else scale
    known, traced, (of_scale, of_offset) = both(jnp.float32(0.7))
    np.testing.assert_array_equal(known, traced)
    np.testing.assert_allclose(of_scale.sum(), of_offset, rtol=1e-5)


def test_a_fraction_takes_what_it_says() -> None:
    """A fraction is rounded down as written, whichever float represents it: 0.29 of 100 is 29."""
    x = draw(np.random.default_rng(0), (2, 100), "float32")
    counts = (1, 7, 14, 28, 29, 56, 57, 58, 99)
    fractions: list[tuple[int, Any]] = [
        (n, f(n / 100)) for n in counts for f in (float, np.float32)
    ]
    fractions += [(29, 0.299), (99, 0.9999), (33, 1 / 3)]

    @jax.jit
    def all_of_them(x: Any) -> list[jax.Array]:
        return [jn.rms_norm(x, fraction=f, epsilon=0.0) for _, f in fractions]

    for (n, _), y in zip(fractions, all_of_them(x), strict=True):
        mean_square = (np.float64(x[:, :n]) ** 2).mean(-1, keepdims=True)
        assert_close(y, x / np.sqrt(mean_square))


def over_devices(name: str) -> Callable[..., jax.Array]:
    """A norm with statistics over positions, for (batch, positions, channels)."""
    options: dict[str, Any] = {"num_groups": 2} if name == "group" else {}
    if name in ("layer", "rms", "l2"):
        options["reduction_axes"] = (1, 2)
    return of(jn.l2_normalize if name == "l2" else getattr(jn, f"{name}_norm"), **options)


@pytest.mark.sampled
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("name", OVER_DEVICES)
def test_split_over_devices(name: str, with_mask: bool) -> None:
    """With axis_name, statistics and gradients cover all 8 devices."""
    norm, rng = over_devices(name), np.random.default_rng(0)
    x, dy = draw(rng, (3, 40, 6), "float32", 2.0, 3.0), draw(rng, (3, 40, 6), "float32")
    mask = rng.random((3, 40, 1)) < np.linspace(0, 1, 40)[:, None]  # few on the first device
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    spec = P(None, "devices")

    def whole(x: jax.Array, mask: jax.Array, **options: Any) -> jax.Array:
        return norm(x, mask=mask if with_mask else None, **options)

    part = of(whole, axis_name="devices")
    split = jax.shard_map(part, mesh=mesh, in_specs=(spec, spec), out_specs=spec)

    @jax.jit
    def both(x: jax.Array, mask: jax.Array, dy: jax.Array) -> Any:
        pairs = (jax.vjp(lambda x, f=f: f(x, mask), x) for f in (split, whole))
        return [(y, *pull(dy)) for y, pull in pairs]

    (y, dx), (expected, expected_dx) = both(x, mask, dy)
    assert_close(y, np.asarray(expected))
    assert_close(dx, np.asarray(expected_dx))


@pytest.mark.parametrize("name", OVER_DEVICES)
def test_groups_of_devices(name: str) -> None:
    """Each of the axis_index_groups has its own statistics: two halves act like two inputs."""
    norm = over_devices(name)
    x = draw(np.random.default_rng(0), (4, 2, 5, 6), "float32", 2.0, 3.0)  # devices first
    x[1:3] += 5
    groups = [[0, 2], [1, 3]]
    y = jax.pmap(of(norm, axis_name="d", axis_index_groups=groups), axis_name="d")(x)
    for pair in groups:
        expected = jax.jit(norm)(np.concatenate(x[pair], axis=1))
        assert_close(np.concatenate(np.asarray(y)[pair], axis=1), np.asarray(expected))
