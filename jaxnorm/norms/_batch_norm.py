"""Batch normalization (Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167)."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._activation import check_activation
from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, broadcast_parameter, canonical_axes, complement
from ..core._moments import broadcast_mask, reduce_moments
from ..core._normalize import normalize
from ..core._pool import Moments
from ..core._precision import result_dtype, upcast
from ..core._public import public
from ..core._residuals import rematerialized_if_differentiated
from ..core._running import RunningStats, broadcast_running_stats, update_running_stats
from ._normalized_by import normalized_by
from ._saved import SaveAs, check_save_as, normalized_saving
from ._virtual_batch import (
    check_virtual_batch_size,
    moments_of_all,
    moments_of_virtual_batches,
)


@public
def batch_norm(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    momentum: float | jax.Array | None = 0.99,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    mask: jax.Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    virtual_batch_size: int | None = None,
    activation: str | None = None,
    residual: jax.Array | None = None,
    save_as: SaveAs | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, RunningStats]:
    """Batch norm in training: normalizes with the statistics of this batch, and moves the running ones.

        y = activation((x - μ) / sqrt(σ² + ε) · scale + bias + residual)

    μ and σ² are taken over all axes but ``feature_axes``; σ² divides by n, the number of values counted.

    Args:
        x: activations of any rank and any integer, floating (16 bits or wider) or complex dtype.
            Statistics and arithmetic are in float32 or wider: of values of 1e-15 to 1e15 in float32.
        stats: running statistics of the feature shape, from `init_running_stats` or the last step.
        scale: γ, of the feature shape; None is 1.
        bias: β, of the feature shape; None is 0.
        feature_axes: the axes that are kept: -1 for channels last, 1 for channels first.
        momentum: the weight of the *old* running value, in [0, 1]. PyTorch's momentum is the weight of
            the new one, so its 0.1 is 0.9 here. None: the plain average of all batches
            (``init_running_stats(..., cumulative=True)``).
        epsilon: ε, added to the variance; zero or positive.
        unbiased: the running variance gets the batch's variance times n / (n - 1), as PyTorch's does.
        mask: True counts. Boolean or integer, broadcastable to ``x``. A masked value never reaches a
            statistic or another element, in either direction. Its own output is normalized like any
            other; a masked NaN or infinity is read as the mean.
        axis_name: one or several axes of vmap, pmap or shard_map whose devices share statistics,
            weighted by count, in one all-reduce forward (of two or three float64 numbers a channel) and
            one backward. Under jit over a mesh no name is needed.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        virtual_batch_size: so many neighbouring examples (along axis 0, then along ``axis_name``) are
            normalized with statistics of their own, however they lie on devices: fewer than a device has,
            or those of several. The running statistics are moved by all examples of all devices. None: all
            examples share their statistics.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, those of ``jax.nn``, computed in the same
            pass; None is none. For the backward pass, only x is saved.
        residual: of the shape of ``x``, added before the activation. With ``relu`` and ``leaky_relu`` a
            boolean for each element is saved for it, with others ``residual`` itself.
        save_as: what is saved for the backward pass instead of ``x``; ``y`` and the statistics are exact all
            the same. ``"output"``: ``y``, which the next layer keeps anyway, so that this one adds nothing
            (In-Place ABN, https://arxiv.org/abs/1712.02616). ``activation`` must be None or ``leaky_relu``.
            The normalized ``x`` is then known to the rounding u of ``y`` times max(1, abs(bias / scale)).
            Channels where the latter is over 1 / sqrt(u), or ``scale`` is 0, have NaN for gradients: start
            no ``scale`` at 0. A floating dtype: the normalized ``x`` rounded to it; ``jnp.bfloat16`` halves
            what is saved of a float32 ``x``, and rounds by up to 0.4 %. Not with ``mask``, ``residual``,
            ``axis_index_groups`` or ``virtual_batch_size``.
        dtype: of ``y``; None is what ``x``, ``scale``, ``bias`` and ``residual`` promote to.

    Returns:
        ``y`` of the shape of ``x``, and RunningStats of the shapes and dtypes of ``stats``. With nothing
        counted, ``stats`` come back as they were and ``y`` is finite.

    Raises:
        ValueError: a shape, axis, mask, dtype, epsilon or momentum that cannot be; the message says what
            must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (256, 8, 8, 4))
        >>> y, stats = jn.batch_norm(x, jn.init_running_stats(4), momentum=0.9)
        >>> print(y.mean().round(3), y.std().round(3), stats.var.shape)
        0.0 1.0 (4,)
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    guess, _ = broadcast_running_stats(stats, x, features)
    reduced = complement(features, x.ndim)
    if virtual_batch_size is not None:
        check_virtual_batch_size(virtual_batch_size, features, axis_index_groups)

    if save_as is not None:
        check_save_as(
            save_as,
            activation,
            x,
            mask=mask,
            residual=residual,
            axis_index_groups=axis_index_groups,
            virtual_batch_size=virtual_batch_size,
        )
        y, m = normalized_saving(
            save_as,
            x,
            scale,
            bias,
            feature_axes=features,
            epsilon=epsilon,
            axis_name=axis_name,
            dtype=dtype,
            activation=activation,
        )
        return y, update_running_stats(stats, m, momentum=momentum, unbiased=unbiased)

    def take_moments(x: jax.Array, mask: jax.Array | None, narrow: jax.Array) -> Moments:
        if virtual_batch_size is None:
            return reduce_moments(
                x, reduced, mask, axis_name, axis_index_groups, narrow=narrow, guess=guess
            )
        return moments_of_virtual_batches(x, reduced, mask, virtual_batch_size, axis_name, narrow)

    y, m = normalized_by(
        take_moments,
        x,
        scale,
        bias,
        feature_axes=features,
        epsilon=epsilon,
        mask=mask,
        dtype=dtype,
        activation=activation,
        residual=residual,
    )
    if virtual_batch_size is not None:
        m = moments_of_all(m, x.shape[0], virtual_batch_size, axis_name)
    return y, update_running_stats(stats, m, momentum=momentum, unbiased=unbiased)


@public
@rematerialized_if_differentiated
def batch_norm_inference(
    x: jax.Array,
    stats: RunningStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    activation: str | None = None,
    residual: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Batch norm in evaluation: normalizes with the running statistics, each example by itself.

        y = activation((x - mean) / sqrt(var + ε) · scale + bias + residual)

    Args:
        x: activations of any rank and any integer, floating (16 bits or wider) or complex dtype; the
            arithmetic is in float32 or wider.
        stats: running statistics of the feature shape.
        scale: γ, of the feature shape; None is 1.
        bias: β, of the feature shape; None is 0.
        feature_axes: the axes that are kept: -1 for channels last, 1 for channels first.
        epsilon: ε, added to the variance; zero or positive.
        mask: as in training: a masked NaN or infinity is read as the mean, so it reaches no gradient.
        activation: as in training.
        residual: of the shape of ``x``, added before the activation.
        dtype: of ``y``; None is what ``x``, ``scale``, ``bias`` and ``residual`` promote to.

    Returns:
        ``y`` of the shape of ``x``. It can be differentiated for every array argument.

    Raises:
        ValueError: a shape, axis, dtype or epsilon that cannot be; the message says what must hold and
            what to do.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.array([10.0]), var=jnp.array([4.0]))
        >>> print(jn.batch_norm_inference(jnp.array([[10.0], [12.0]]), stats, epsilon=0.0))
        [[0.]
         [1.]]
    """
    x = jnp.asarray(x)
    features = canonical_axes(feature_axes, x.ndim, "feature_axes")
    mean, var = broadcast_running_stats(stats, x, features)
    scale, bias = (
        broadcast_parameter(scale, x, features, "scale"),
        broadcast_parameter(bias, x, features, "bias"),
    )
    mask = broadcast_mask(mask, x)
    residual = check_activation(activation, residual, x, scale, bias)
    y_dtype = result_dtype(dtype, x, scale, bias, residual)

    x = upcast(x, mean, var, scale, bias, residual)
    y = normalize(
        x,
        mean,
        var,
        scale,
        bias,
        epsilon=epsilon,
        mask=mask,
        activation=activation,
        residual=residual,
    )
    return y.astype(y_dtype)
