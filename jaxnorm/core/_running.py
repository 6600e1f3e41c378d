"""Running statistics: each training batch updates them, and evaluation normalizes with them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ._axes import broadcast_parameter
from ._moving_average import moving_average
from ._placement import sharded_like
from ._pool import Moments, unbiased_variance
from ._precision import arithmetic_dtype, real_dtype
from .calling._arguments import checked
from .calling._explained import explained
from .calling._serialized import serialized


@serialized
class RunningStats(NamedTuple):
    """The running mean and variance, each of the feature shape.

    ``count`` is the number of batches in which each feature had unmasked elements (with shape (), in which
    any feature had). It is used by the cumulative average (``momentum=None``), and is None otherwise.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.array([10.0]), var=jnp.array([4.0]))
        >>> print(jn.batch_norm_inference(jnp.array([[14.0]]), stats, epsilon=0.0))
        [[2.]]
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array | None = None  # pyright: ignore[reportIncompatibleMethodOverride]  # int32


@explained
@checked
def init_running_stats(
    feature_shape: int | Sequence[int], dtype: DTypeLike = jnp.float32, *, cumulative: bool = False
) -> RunningStats:
    """Returns running statistics before the first batch: mean 0, variance 1.

    Args:
        feature_shape: sizes of the feature axes, such as ``(64,)`` or ``64`` for 64 channels.
        dtype: dtype of the mean; the variance has its real counterpart. A complex input needs a complex mean.
        cumulative: whether to count batches, which the cumulative average (``momentum=None``) needs.

    Returns:
        RunningStats.

    Raises:
        ValueError: If ``dtype`` is not a floating or complex type, or ``cumulative`` is not a bool.

    Example:
        >>> import jaxnorm as jn
        >>> jn.init_running_stats(1)
        RunningStats(mean=Array([0.], dtype=float32), var=Array([1.], dtype=float32), count=None)
    """
    _check_inexact(dtype)
    count = jnp.zeros(feature_shape, jnp.int32) if cumulative else None
    return RunningStats(
        jnp.zeros(feature_shape, dtype), jnp.ones(feature_shape, real_dtype(dtype)), count
    )


def untracked_stats(x: jax.Array, shape: Sequence[int]) -> RunningStats:
    """Returns statistics for a layer that does not track any; their update is discarded."""
    return init_running_stats(shape, arithmetic_dtype(x))


@explained
@checked
def update_running_stats(
    stats: RunningStats,
    moments: Moments,
    *,
    momentum: float | jax.Array | None = 0.99,
    unbiased: bool = False,
) -> RunningStats:
    """Updates running statistics with the moments of one batch.

        mean ← momentum · mean + (1 - momentum) · batch mean         (var likewise)

    Where all elements of the batch are masked, the statistics do not change. Shapes and dtypes never change,
    so the statistics can be the carry of a scan.

    Args:
        stats: the statistics so far.
        moments: the moments of the batch, with as many features as ``stats``.
        momentum: the weight of the *old* value, in [0, 1]. PyTorch's momentum is the weight of the new
            value, so its 0.1 is 0.9 here. None takes the plain average of all batches, which needs
            ``stats.count``.
        unbiased: whether to multiply the batch's variance by n / (n - 1), as PyTorch does.

    Returns:
        RunningStats of the same shapes and dtypes.

    Raises:
        ValueError: If ``momentum`` is out of range, ``stats.count`` is missing for ``momentum=None``, the
            shapes do not match, or the moments are complex and the statistics real.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> batch = jn.moments(jnp.array([[0.0], [2.0]]), 0)
        >>> print(jn.update_running_stats(jn.init_running_stats(1), batch, momentum=0.5, unbiased=True))
        RunningStats(mean=Array([0.5], dtype=float32), var=Array([1.5], dtype=float32), count=None)
    """
    stats = as_arrays(stats)
    n = moments.count
    # One static number for all features, as `reduce_moments` counts; NumPy moments may have one for each.
    everywhere = isinstance(n, np.ndarray) and n.size == 1 and n.item() > 0
    moments = Moments(*map(jnp.asarray, moments))
    _check_update(stats, moments)
    shape = stats.mean.shape
    if not everywhere:
        # Adding zeros_like(var) gives the count the sharding of the variance.
        n = jnp.broadcast_to(moments.count, moments.mean.shape)
        n = (n + jnp.zeros_like(moments.var, n.dtype)).reshape(shape)
    # A mesh may split the channels of x but not those of stats, which keep their sharding.
    new = moments.mean, moments.var
    mean, var = (sharded_like(a.reshape(shape), stats.mean) for a in new)
    n = n if everywhere else sharded_like(n, stats.mean)
    if unbiased:
        var = unbiased_variance(var, n.reshape(-1)[0] if everywhere else n)
    old_weight = _batches_share(stats) if momentum is None else momentum

    def step(old: jax.Array, new: jax.Array) -> jax.Array:
        moved = moving_average(old, new, old_weight).astype(old.dtype)
        return moved if everywhere else jnp.where(n > 0, moved, old)

    batches = stats.count
    if batches is not None:  # for each feature, or one number for all
        counted = True if everywhere else n > 0 if batches.shape == n.shape else (n > 0).any()
        batches = batches + jnp.asarray(counted, batches.dtype)
    return RunningStats(step(stats.mean, mean), step(stats.var, var), batches)


def _batches_share(stats: RunningStats) -> jax.Array:
    """Returns the weight of the batches so far in the plain average of these and one more."""
    if stats.count is None:
        raise ValueError(
            "stats.count must be the number of batches so far for momentum=None, which averages all batches; "
            "got stats.count=None. Start from init_running_stats(feature_shape, cumulative=True)."
        )
    seen = stats.count.astype(arithmetic_dtype(stats.var))
    return seen / (seen + 1)


def as_arrays(stats: RunningStats) -> RunningStats:
    """Converts the fields of ``stats`` to jax arrays, from whatever a checkpoint restores (NumPy, lists).

    Raises:
        ValueError: If ``stats`` is not a RunningStats, or has an integer mean.
    """
    if not isinstance(stats, RunningStats):
        raise ValueError(
            f"stats must be RunningStats(mean, var); got {type(stats).__name__}. "
            f"Start from init_running_stats(feature_shape) and pass what the last step returned; convert a "
            f"dict or a tuple from a checkpoint with RunningStats(**d) or RunningStats(*t)."
        )
    mean, var, count = stats
    mean, var = jnp.asarray(mean), jnp.asarray(var)
    _check_inexact(mean.dtype)
    return RunningStats(mean, var, None if count is None else jnp.asarray(count))


def broadcast_running_stats(
    stats: RunningStats, x: jax.Array, feature_axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and var of ``stats`` with size-1 axes inserted, so that they broadcast against ``x``.

    Raises:
        ValueError: If ``stats`` is not a RunningStats, does not have the shape of the feature axes of ``x``,
            is real for a complex ``x``, or is complex for a real ``x``.
    """
    stats = as_arrays(stats)
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(stats.mean):
        raise ValueError(
            f"stats.mean must be complex for a complex input; got {stats.mean.dtype.name} for x of dtype "
            f"{x.dtype.name}. Start from init_running_stats(feature_shape, dtype=jnp.complex64), or "
            f"initialize a module with a complex x (Linen) or with param_dtype=jnp.complex64 (NNX)."
        )
    if jnp.iscomplexobj(stats.mean) and not jnp.iscomplexobj(x):
        raise ValueError(
            f"stats.mean must be real for a real input; got {stats.mean.dtype.name} for x of dtype "
            f"{x.dtype.name}. Start from init_running_stats(feature_shape), or make x complex."
        )
    mean = broadcast_parameter(stats.mean, x, feature_axes, "stats.mean")
    var = broadcast_parameter(stats.var, x, feature_axes, "stats.var")
    assert mean is not None and var is not None
    return mean, var


def _check_inexact(dtype: DTypeLike) -> None:
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"dtype of running statistics must be floating or complex; got {jnp.dtype(dtype).name}. "
            f"Use float32, whatever the dtype of the input."
        )


def _check_update(stats: RunningStats, moments: Moments) -> None:
    for name, leaf in (("var", stats.var), ("count", stats.count)):
        shapes = (stats.mean.shape,) if name == "var" else (stats.mean.shape, ())
        if leaf is not None and leaf.shape not in shapes:
            raise ValueError(
                f"stats.{name} must have the shape of stats.mean; got {leaf.shape} for a mean of shape "
                f"{stats.mean.shape}. Start from init_running_stats(feature_shape)."
            )
    if jnp.iscomplexobj(moments.mean) and not jnp.iscomplexobj(stats.mean):
        raise ValueError(
            f"stats.mean must be complex for complex moments; got {stats.mean.dtype.name} for a mean of "
            f"dtype {moments.mean.dtype.name}. Start from init_running_stats(feature_shape, "
            f"dtype=jnp.complex64)."
        )
    sizes, needed = (
        [k for k in shape if k != 1] for shape in (stats.mean.shape, moments.mean.shape)
    )
    if sizes != needed:
        raise ValueError(
            f"stats must have one mean for each feature of the moments; got stats.mean of shape "
            f"{stats.mean.shape} for moments of shape {moments.mean.shape}. "
            f"Reduce over all axes except the feature axes, and keep the order of those."
        )
