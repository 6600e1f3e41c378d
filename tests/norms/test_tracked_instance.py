"""Instance norm with running statistics, which average the statistics of instances, against float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw
from tests.oracle import assert_close, gradient, typical_moments

SHAPE = (4, 5, 3)


def activations(shape: tuple[int, ...] = SHAPE, dtype: str = "float32", seed: int = 0) -> Any:
    """Instances with different means and standard deviations."""
    rng = np.random.default_rng(seed)
    own = (shape[0],) + (1,) * (len(shape) - 2) + (shape[-1],)
    x = draw(rng, shape, "float32") * np.abs(draw(rng, own, "float32", 1.0))
    return (x + draw(rng, own, "float32", 2.0, 3.0)).astype(jnp.dtype(dtype))


def masked() -> np.ndarray:
    """A partial mask with one instance, one channel of an instance and one whole channel fully masked."""
    mask = np.random.default_rng(5).random(SHAPE) < 0.6
    mask[1] = mask[2, :, 0] = mask[:, :, 2] = False
    mask[3, :, 1] = np.arange(5) == 3  # a single value
    return mask


def before(cumulative: bool = False, dtype: str = "float32") -> jn.RunningStats:
    """Running statistics other than the initial ones."""
    mean, var = draw(np.random.default_rng(9), (2, 3), dtype)
    count = jnp.full(3, 4, jnp.int32) if cumulative else None
    return jn.RunningStats(jnp.asarray(mean), jnp.asarray(abs(var)), count)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_y_is_that_of_instance_norm(dtype: str, with_mask: bool) -> None:
    """Outputs match instance norm bit for bit, with scale, bias, mask, ε and dtype."""
    x, (scale, bias) = activations(dtype=dtype), draw(np.random.default_rng(1), (2, 3), dtype)
    options: dict[str, Any] = {"epsilon": 1e-3, "dtype": jnp.float32}
    options["mask"] = jnp.asarray(masked()) if with_mask else None
    stats = jn.init_running_stats(3)
    y, _ = jax.jit(lambda x: jn.tracked_instance_norm(x, stats, scale, bias, **options))(x)
    expected = jax.jit(lambda x: jn.instance_norm(x, scale, bias, **options))(x)
    np.testing.assert_array_equal(y, expected)
    plain, _ = jn.tracked_instance_norm(x, stats)  # so do the defaults
    np.testing.assert_array_equal(np.float32(plain), np.float32(jn.instance_norm(x)))


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0, None])
def test_running_statistics(momentum: float | None, unbiased: bool, with_mask: bool) -> None:
    """Running statistics average over instances with unmasked values; empty channels keep their own."""
    x, mask = activations(), masked() if with_mask else None
    stats = before(momentum is None)
    if mask is not None:  # masked values are never read
        x = np.where(mask, x, np.float32(np.nan))
    f = jax.jit(
        lambda x, stats: jn.tracked_instance_norm(
            x,
            stats,
            momentum=momentum,
            unbiased=unbiased,
            mask=None if mask is None else jnp.asarray(mask),
        )
    )
    _, new = f(x, stats)
    mean, var, instances = typical_moments(x, unbiased, mask)
    rho = 4 / 5 if momentum is None else momentum
    rho = np.where(instances > 0, rho, 1.0)
    assert_close(new.mean, rho * np.float64(stats.mean) + (1 - rho) * mean)
    assert_close(new.var, rho * np.float64(stats.var) + (1 - rho) * var)
    if momentum is None:
        np.testing.assert_array_equal(new.count, 4 + (instances > 0))
    else:
        assert new.count is None


def test_how_far_means_are_apart_is_left_out() -> None:
    """The spread of means is ignored: two constant instances far apart have variance 0, in batch norm 25."""
    x = jnp.repeat(jnp.asarray([0.0, 10.0]), 4).reshape(2, 4, 1)
    stats = jn.init_running_stats(1)
    _, tracked = jn.tracked_instance_norm(x, stats, momentum=0.0)
    _, pooled = jn.batch_norm(x, stats, momentum=0.0)
    assert (tracked.mean, tracked.var) == (5, 0)
    assert (pooled.mean, pooled.var) == (5, 25)


def test_instances_weigh_alike() -> None:
    """Instances have equal weight, however many unmasked elements each has."""
    x = jnp.asarray([[1.0, 1, 1, 1], [9, 0, 0, 0]])[..., None]
    mask = jnp.asarray([[1, 1, 1, 1], [1, 0, 0, 0]])[..., None]
    _, stats = jn.tracked_instance_norm(x, jn.init_running_stats(1), momentum=0.0, mask=mask)
    assert stats.mean == 5


@pytest.mark.parametrize("axes", [1, (1, 3), (-1, -2)], ids=str)
def test_feature_axes(axes: Any) -> None:
    """With channels first or several feature axes, statistics have their shape and order."""
    x = activations((4, 2, 6, 3))
    kept = sorted(i % 4 for i in (axes if isinstance(axes, tuple) else (axes,)))
    shape = tuple(x.shape[i] for i in kept)
    _, stats = jax.jit(
        lambda x: jn.tracked_instance_norm(
            x, jn.init_running_stats(shape), feature_axes=axes, momentum=0.0
        )
    )(x)
    positions = [i for i in (1, 2, 3) if i not in kept]
    flat = x.transpose(0, *positions, *kept).reshape(4, -1, int(np.prod(shape)))
    mean, var, _ = typical_moments(flat)
    assert_close(stats.mean, mean.reshape(shape))
    assert_close(stats.var, var.reshape(shape))


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 3)], ids=str)
def test_nothing_to_average(shape: tuple[int, ...]) -> None:
    """With no values, statistics do not change; with one value each, the variance is 0, unbiased or not."""
    x, stats = jnp.ones(shape), before(cumulative=True)
    y, new = jn.tracked_instance_norm(x, stats, momentum=None, unbiased=True)
    assert y.shape == shape
    if 0 in shape:
        jax.tree.map(np.testing.assert_array_equal, new, stats)
    else:
        assert_close(new.mean, 0.8 * np.float64(stats.mean) + 0.2)
        assert_close(new.var, 0.8 * np.float64(stats.var))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_scan_over_steps(momentum: float | None, dtype: str) -> None:
    """As the carry of a scan, running statistics stay float32 for half-precision x and exact over steps."""
    xs = np.stack([activations(dtype=dtype, seed=i) for i in range(5)])
    start = jn.init_running_stats(3, cumulative=momentum is None)

    def step(stats: jn.RunningStats, x: Any) -> Any:
        y, stats = jn.tracked_instance_norm(x, stats, momentum=momentum)
        return stats, y

    stats, _ = jax.jit(lambda xs: jax.lax.scan(step, start, xs))(xs)
    mean, var = np.zeros(3), np.ones(3)
    for i, x in enumerate(xs):
        rho = i / (i + 1) if momentum is None else momentum
        new_mean, new_var, _ = typical_moments(x)
        mean, var = rho * mean + (1 - rho) * new_mean, rho * var + (1 - rho) * new_var
    assert stats.mean.dtype == stats.var.dtype == jnp.float32
    assert_close(stats.mean, mean)
    assert_close(stats.var, var)


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradient_of_running_statistics(unbiased: bool) -> None:
    """Running statistics are differentiable with respect to x, and NaN under the mask gets no gradient."""
    mask = masked()
    x = np.where(mask, activations(), np.float32(np.nan))
    ct_mean, ct_var = draw(np.random.default_rng(1), (2, 3), "float32")
    ct_mean[2] = ct_var[2] = 0  # fully masked

    def ours(x: Any) -> Any:
        _, stats = jn.tracked_instance_norm(
            x, before(), momentum=0.5, unbiased=unbiased, mask=jnp.asarray(mask)
        )
        return (ct_mean * stats.mean + ct_var * stats.var).sum()

    def oracle(x: Any) -> Any:
        mean, var, _ = typical_moments(x, unbiased, mask)
        return 0.5 * (ct_mean * mean + ct_var * var).sum()

    (want,) = gradient(oracle, [x])
    assert_close(jax.jit(jax.grad(ours))(x), want, 1e-4)
    assert_close(jax.jit(jax.jacfwd(ours))(x), want, 1e-4)


def test_vmap_of_models() -> None:
    """Under vmap each model has its own statistics."""
    xs = np.stack([activations(seed=i) for i in range(3)])
    f = lambda x: jn.tracked_instance_norm(x, before(), momentum=0.5)  # noqa: E731
    y, stats = jax.jit(jax.vmap(f))(xs)
    for i, x in enumerate(xs):
        alone, want = f(x)
        assert_close(y[i], np.asarray(alone))
        assert_close(stats.mean[i], np.asarray(want.mean))
        assert_close(stats.var[i], np.asarray(want.var))


def test_positions_split_over_devices() -> None:
    """With axis_name, moments of whole instances are averaged, with the same result on every device."""
    x = activations((4, 40, 3))
    parts = x.reshape(4, 8, 5, 3).swapaxes(0, 1)
    f = lambda x, **names: jn.tracked_instance_norm(x, before(), unbiased=True, **names)  # noqa: E731
    _, want = f(x)
    _, got = jax.pmap(lambda x: f(x, axis_name="d"), axis_name="d")(parts)
    for device in (0, 7):
        assert_close(got.mean[device], np.asarray(want.mean))
        assert_close(got.var[device], np.asarray(want.var))


@pytest.mark.parametrize("momentum", [0.1, 0.6])
def test_pytorch(momentum: float) -> None:
    """Matches InstanceNorm2d(track_running_stats=True) over several steps and then in evaluation."""
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.InstanceNorm2d(3, momentum=momentum, track_running_stats=True)
    stats = jn.init_running_stats(3)
    options: dict[str, Any] = {"feature_axes": 1, "epsilon": 1e-5}
    train = jax.jit(
        lambda x, stats: jn.tracked_instance_norm(
            x, stats, momentum=1 - momentum, unbiased=True, **options
        )
    )
    xs = [np.moveaxis(activations((4, 5, 6, 3), seed=i), -1, 1).copy() for i in range(6)]
    for x in xs[:5]:
        y, stats = train(x, stats)
        np.testing.assert_allclose(y, layer(torch.from_numpy(x)).numpy(), atol=3e-5)
        np.testing.assert_allclose(stats.mean, layer.running_mean.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats.var, layer.running_var.numpy(), rtol=1e-5)
    y = jn.batch_norm_inference(xs[5], stats, **options)
    np.testing.assert_allclose(y, layer.eval()(torch.from_numpy(xs[5])).numpy(), atol=3e-5)
