"""Layer, RMS, group and instance norm against one float64 oracle, written from the definitions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn


class Norm(NamedTuple):
    """A norm of ours, and which elements of x share a statistic: its cells, numbered."""

    ours: Callable[..., jax.Array]
    cells: Callable[[tuple[int, ...]], np.ndarray]
    shape: tuple[int, ...]
    features: tuple[int, ...] = (-1,)
    subtract_mean: bool = True


def numbered(shape: tuple[int, ...], reduced: tuple[int, ...]) -> np.ndarray:
    """Every element's cell where the axes ``reduced`` share one."""
    kept = [1 if i in reduced else n for i, n in enumerate(shape)]
    return np.broadcast_to(np.arange(np.prod(kept)).reshape(kept), shape)


def grouped(shape: tuple[int, ...], groups: int, channel: int = -1) -> np.ndarray:
    """Cells of group norm: an example and a group of neighbouring channels."""
    channel %= len(shape)
    size = shape[channel] // groups
    group = np.arange(shape[channel]) // size
    group = group.reshape([-1 if i == channel else 1 for i in range(len(shape))])
    example = np.arange(shape[0]).reshape([-1] + [1] * (len(shape) - 1))
    return np.broadcast_to(example * groups + group, shape)


NORMS = {
    "layer": Norm(jn.layer_norm, lambda s: numbered(s, (1,)), (6, 37)),
    "layer, long rows": Norm(jn.layer_norm, lambda s: numbered(s, (1,)), (3, 4099)),
    "layer, many rows": Norm(jn.layer_norm, lambda s: numbered(s, (1,)), (40009, 24)),
    "layer, all but the batch": Norm(
        lambda *a, **k: jn.layer_norm(*a, reduction_axes=(1, 2, 3), **k),
        lambda s: numbered(s, (1, 2, 3)),
        (3, 5, 7, 4),
    ),
    "layer, other axes": Norm(
        lambda *a, **k: jn.layer_norm(*a, reduction_axes=(0, 2), feature_axes=(1, 2), **k),
        lambda s: numbered(s, (0, 2)),
        (3, 5, 7),
        features=(1, 2),
    ),
    "rms": Norm(jn.rms_norm, lambda s: numbered(s, (2,)), (2, 5, 33), subtract_mean=False),
    "instance": Norm(jn.instance_norm, lambda s: numbered(s, (1, 2)), (3, 13, 11, 4)),
    "instance, channels first": Norm(
        lambda *a, **k: jn.instance_norm(*a, feature_axes=1, **k),
        lambda s: numbered(s, (2, 3)),
        (3, 4, 13, 11),
        features=(1,),
    ),
    "group": Norm(
        lambda *a, **k: jn.group_norm(*a, num_groups=3, **k), lambda s: grouped(s, 3), (2, 7, 5, 12)
    ),
    "group, no positions": Norm(
        lambda *a, **k: jn.group_norm(*a, num_groups=None, group_size=4, **k),
        lambda s: grouped(s, 3),
        (5, 12),
    ),
    "group, channels first": Norm(
        lambda *a, **k: jn.group_norm(*a, num_groups=2, feature_axes=1, **k),
        lambda s: grouped(s, 2, 1),
        (2, 6, 5, 7),
        features=(1,),
    ),
}


def oracle(norm: Norm, x: Any, scale: Any, bias: Any, mask: Any = None) -> np.ndarray:
    """The norm in float64: statistics of each cell, from the elements that count."""
    x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    cells = norm.cells(x.shape).ravel()
    counts = (
        np.ones(x.size) if mask is None else np.broadcast_to(mask, x.shape).ravel().astype(float)
    )
    safe = np.where(counts > 0, x.ravel(), 0)
    n = np.maximum(np.bincount(cells, counts), 1)
    mean = np.bincount(cells, counts * safe) / n * norm.subtract_mean
    var = np.bincount(cells, counts * (safe - mean[cells]) ** 2) / n
    y = (x.ravel() - mean[cells]) / np.sqrt(var[cells] + 1e-6)
    kept = {i % x.ndim for i in norm.features}
    against = [k if i in kept else 1 for i, k in enumerate(x.shape)]
    y = y.reshape(x.shape) * scale.reshape(against)
    return y if bias is None else y + np.asarray(bias, np.float64).reshape(against)


def primals(norm: Norm, seed: int = 0, mean: float = 1.0) -> tuple[Any, ...]:
    """x, scale and, for all but RMS norm, bias."""
    rng = np.random.default_rng(seed)
    feature_shape = [norm.shape[i] for i in norm.features]
    x = mean + 2 * rng.standard_normal(norm.shape)
    parameters = [rng.standard_normal(feature_shape) for _ in range(1 + norm.subtract_mean)]
    return tuple(np.asarray(a, np.float32) for a in (x, *parameters))


def masks(norm: Norm) -> np.ndarray:
    """A mask that leaves something in most cells."""
    return np.random.default_rng(5).random(norm.shape) < 0.7


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_value_and_derivatives(name: str, masked: bool) -> None:
    """Value, and derivative along a random direction in both modes, are those of the definition."""
    norm = NORMS[name]
    at, direction = primals(norm), primals(norm, seed=1, mean=0.0)
    mask = masks(norm) if masked else None
    weights = np.random.default_rng(2).standard_normal(norm.shape).astype(np.float32)

    def expected(*arguments: Any) -> np.ndarray:
        return oracle(norm, *arguments, *[None] * (3 - len(arguments)), mask=mask)

    def ours(*arguments: Any) -> jax.Array:
        return norm.ours(*arguments, mask=None if mask is None else jnp.asarray(mask))

    y, tangent = jax.jit(lambda *a: jax.jvp(ours, at, a))(*direction)
    np.testing.assert_allclose(y, expected(*at), atol=3e-5, rtol=1e-4)
    gradients = jax.jit(jax.grad(lambda *a: (ours(*a) * weights).sum(), range(len(at))))(*at)

    step = 1e-4  # of central differences in float64: error about 1e-8
    forth, back = (
        expected(*(np.float64(a) + s * np.float64(d) for a, d in zip(at, direction, strict=True)))
        for s in (step, -step)
    )
    slope = (forth - back) / (2 * step)
    scale = np.abs(slope).max()
    np.testing.assert_allclose(tangent, slope, atol=1e-4 * scale)
    along = sum(float(np.vdot(np.float64(g), d)) for g, d in zip(gradients, direction, strict=True))
    size = np.linalg.norm(weights) * np.linalg.norm(slope) / np.sqrt(weights.size)
    assert abs(along - float(np.vdot(weights, slope))) < 1e-3 * size


@pytest.mark.parametrize("name", [name for name, norm in NORMS.items() if norm.subtract_mean])
def test_large_mean(name: str) -> None:
    """At mean 1e4 and standard deviation 2, float32 is enough."""
    norm = NORMS[name]
    x, scale, bias = primals(norm, mean=1e4)
    np.testing.assert_allclose(norm.ours(x, scale, bias), oracle(norm, x, scale, bias), atol=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NORMS)
def test_half_precision_is_rounded_once(name: str, dtype: str) -> None:
    """Half-precision input and output lie one rounding from the oracle on the same input."""
    norm = NORMS[name]
    at = [jnp.asarray(a, dtype) for a in primals(norm)]
    y = norm.ours(*at)
    assert y.dtype == jnp.dtype(dtype)
    expected = oracle(norm, *at, *[None] * (3 - len(at)))
    one_rounding = 2.0 ** (-8 if dtype == "bfloat16" else -11)
    np.testing.assert_allclose(np.float64(y), expected, rtol=1.01 * one_rounding, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_padding_is_not_read(name: str) -> None:
    """NaN under the mask reaches no other output and no gradient."""
    norm = NORMS[name]
    x, *parameters = primals(norm)
    mask = masks(norm)
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
    ],
    ids=["layer", "group", "instance"],
)
def test_defaults_are_those_of_flax(ours: Callable[..., jax.Array], theirs: Any) -> None:
    """With nothing said, the answer is that of Flax's layer with nothing said."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 64))
    scale, bias = jax.random.normal(jax.random.key(1), (2, 64))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = theirs.apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(ours(x, scale, bias), expected, atol=2e-5)


def test_laws() -> None:
    """One group is layer norm over all but the batch; a channel a group is instance norm."""
    x, scale, bias = primals(NORMS["group"])
    one = jn.group_norm(x, scale, bias, num_groups=1)
    np.testing.assert_allclose(
        one, jn.layer_norm(x, scale, bias, reduction_axes=(1, 2, 3)), atol=1e-5
    )
    each = jn.group_norm(x, scale, bias, num_groups=12)
    np.testing.assert_allclose(each, jn.instance_norm(x, scale, bias), atol=1e-5)


def test_scale_offset() -> None:
    """scale_offset=1 is the scale plus 1, added before it is rounded to the output's dtype."""
    x = jax.random.normal(jax.random.key(0), (3, 8))
    scale = jnp.full(8, 2.0**-10, jnp.bfloat16)
    y = jn.rms_norm(x.astype(jnp.bfloat16), scale, scale_offset=1.0, dtype=jnp.float32)
    plain = jn.rms_norm(x.astype(jnp.bfloat16), dtype=jnp.float32)
    np.testing.assert_allclose(y, plain * (1 + 2.0**-10), rtol=1e-6)


@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance"])
def test_features_split_over_devices(name: str) -> None:
    """With axis_name, statistics are those of all devices, and so are gradients."""
    options: dict[str, Any] = {"num_groups": 2} if name == "group" else {}
    norm = getattr(jn, f"{name}_norm")
    x = jax.random.normal(jax.random.key(0), (4, 3, 10, 6)) * 3 + 2  # devices, batch, positions, C
    whole = x.transpose(1, 0, 2, 3).reshape(3, 40, 6)
    weights = jax.random.normal(jax.random.key(1), whole.shape)
    spread_weights = weights.reshape(3, 4, 10, 6).transpose(1, 0, 2, 3)
    if name in ("layer", "rms"):
        options["reduction_axes"] = (1, 2)

    def split(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: norm(x, axis_name="devices", **options), axis_name="devices")(x)

    expected, pull = jax.vjp(lambda x: norm(x, **options), whole)
    got, pull_split = jax.vjp(split, x)
    back = lambda a: a.transpose(1, 0, 2, 3).reshape(3, 40, 6)  # noqa: E731
    np.testing.assert_allclose(back(got), expected, atol=1e-5)
    np.testing.assert_allclose(back(pull_split(spread_weights)[0]), pull(weights)[0], atol=1e-5)
