"""Measures what Flax's norms get wrong, and ours get right, on the same data, compared with float64.

python -m benchmarks.peers
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx


class Row(NamedTuple):
    """One figure from Flax, from jaxnorm and in float64. NaN is a possible value."""

    case: str
    figure: str
    flax: float
    jaxnorm: float
    truth: float


def _train(layer: Any, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, Any]:
    """Returns the output and running statistics of one training step of a Linen batch norm."""
    variables = layer.clone(axis_name=None).init(jax.random.key(0), x)
    y, updated = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def _layers(**options: Any) -> tuple[Any, Any]:
    options = {"use_running_average": False, "momentum": 0.0, **options}
    return nn.BatchNorm(**options), jnl.BatchNorm(**options)


def _synced_means(x: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """The batch mean over both devices: Flax's, ours, and in float64."""

    def mean(layer: Any) -> float:
        on_each = jax.vmap(lambda x, mask: _train(layer, x, mask)[1]["mean"], axis_name="devices")
        return float(on_each(jnp.asarray(x), jnp.asarray(mask))[0, 0])

    flax, ours = _layers(axis_name="devices")
    return mean(flax), mean(ours), x.astype(np.float64)[mask].mean()


def uneven_batches() -> Row:
    """Two devices with ten examples each, of which two and eight are unmasked."""
    x = np.random.default_rng(0).normal([[[0.0]], [[1.5]]], size=(2, 10, 1)).astype(np.float32)
    mask = np.arange(10)[None, :, None] < np.array([2, 8])[:, None, None]

    return Row("uneven batches on two devices", "batch mean", *_synced_means(x, mask))


def empty_shard() -> Row:
    """Two devices, one of which has no unmasked example."""
    x = np.random.default_rng(0).normal(2.0, size=(2, 10, 1)).astype(np.float32)
    mask = np.broadcast_to(np.array([True, False])[:, None, None], x.shape)

    return Row("nothing to count on one device", "batch mean", *_synced_means(x, mask))


def nan_in_padding() -> Row:
    """The gradient of the scale if padding is NaN and the loss depends only on real examples."""
    x = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)
    mask = np.arange(8)[:, None] < 6
    padded = jnp.asarray(np.where(mask, x, np.nan))

    def gradient(layer: Any) -> float:
        def loss(scale: jax.Array) -> jax.Array:
            variables = layer.init(jax.random.key(0), padded)
            params = {**variables["params"], "scale": scale}
            y, _ = layer.apply(
                {**variables, "params": params},
                padded,
                mask=jnp.asarray(mask),
                mutable=["batch_stats"],
            )
            return jnp.where(mask, y**3, 0).sum()

        return float(jax.grad(loss)(jnp.ones(1))[0])

    real = x[mask].astype(np.float64)
    normalized = (real - real.mean()) / np.sqrt(real.var() + 1e-5)
    truth = 3 * (normalized**3).sum()
    flax, ours = (gradient(layer) for layer in _layers())
    return Row("NaN in masked padding", "gradient of scale", flax, ours, truth)


def large_mean() -> Row:
    """Mean 1e4, standard deviation 1, float32."""
    x = np.random.default_rng(0).normal(1e4, 1.0, size=(4096, 1)).astype(np.float32)

    def std(layer: Any) -> float:
        return float(np.std(np.asarray(_train(layer, jnp.asarray(x))[0], np.float64)))

    exact = x.astype(np.float64)
    truth = float(np.sqrt(exact.var() / (exact.var() + 1e-5)))
    flax, ours = (std(layer) for layer in _layers())
    return Row("mean 1e4, std 1 (Flax's default variance)", "std of the output", flax, ours, truth)


def half_precision() -> Row:
    """Evaluation in float16 with a running variance that float16 cannot hold (Flax NNX)."""
    x = jnp.asarray(np.random.default_rng(0).normal(0, 316.2, size=(256, 1)), jnp.float16)
    var = jnp.full(1, 1e5)
    flax = nnx.BatchNorm(1, dtype=jnp.float16, use_running_average=True, rngs=nnx.Rngs(0))
    flax.var[...] = var
    ours = jn.batch_norm_inference(x, jn.RunningStats(jnp.zeros(1), var), dtype=jnp.float16)
    truth = np.std(np.asarray(x, np.float64)) / np.sqrt(1e5 + 1e-5)
    std = float(np.std(np.asarray(flax(x), np.float64)))
    ours_std = float(np.std(np.asarray(ours, np.float64)))
    return Row("float16, running variance 1e5 (NNX)", "std of the output", std, ours_std, truth)


def replicas() -> Row:
    """The variance over four replicas with means 0, 2, 4 and 6; many average their variances."""
    x = np.random.default_rng(0).normal([[0.0], [2.0], [4.0], [6.0]], size=(4, 1000))
    each = jn.moments(jnp.asarray(x, jnp.float32), 1)
    pooled = float(jn.pool(each, 0).var[0, 0])
    return Row(
        "four replicas (not Flax: their variances averaged by hand)",
        "variance",
        float(each.var.mean()),
        pooled,
        x.var(),
    )


def group_reduction_axes() -> Row:
    """Group norm over columns and channels, separately for each row; the two groups differ in contrast."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)) * np.repeat([1.0, 5.0], 3)
    x = x.astype(np.float32)
    options = {"num_groups": 2, "reduction_axes": (2, 3), "rngs": nnx.Rngs(0)}
    flax, ours = (norm(6, **options)(jnp.asarray(x)) for norm in (nnx.GroupNorm, jnx.GroupNorm))
    groups = x.astype(np.float64).reshape(2, 3, 4, 2, 3)
    mean, var = (stat((2, 4), keepdims=True) for stat in (groups.mean, groups.var))
    truth = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    return Row(
        "group norm with reduction_axes (NNX)",
        "std of the output",
        float(flax.std()),
        float(ours.std()),
        truth.std(),
    )


def wrapped_kernel() -> Row:
    """The kernel under spectral norm, after one evaluation (Flax NNX)."""

    def length(wrapper: Any) -> float:
        layer = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        wrapper(layer, rngs=nnx.Rngs(1))(jnp.ones((1, 8)), update_stats=False)
        return float(jnp.linalg.norm(layer.kernel[...]))

    kernel = np.asarray(nnx.Linear(8, 8, rngs=nnx.Rngs(0)).kernel[...], np.float64)
    return Row(
        "the kernel under spectral norm, after an evaluation (NNX)",
        "length",
        length(nnx.SpectralNorm),
        length(jnx.SpectralNorm),
        float(np.linalg.norm(kernel)),
    )


CASES: tuple[Callable[[], Row], ...] = (
    uneven_batches,
    empty_shard,
    nan_in_padding,
    large_mean,
    half_precision,
    group_reduction_axes,
    wrapped_kernel,
    replicas,
)


def main() -> None:
    """Prints the table in Markdown."""
    print("| | | Flax | jaxnorm | float64 |\n|---|---|---|---|---|")
    for case in CASES:
        row = case()
        figures = " | ".join(f"{value:.3f}" for value in row[2:])
        print(f"| {row.case} | {row.figure} | {figures} |")


if __name__ == "__main__":
    main()
