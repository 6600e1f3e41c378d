"""Batch normalization (Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167)."""

import jax
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, complement
from ...core._moments import reduce_moments
from ...core._normalize import normalize
from ...core._pool import Moments
from ...core._precision import upcast
from ...core._residuals import rematerialized_if_differentiated
from ...core._running import RunningStats, broadcast_running_stats, update_running_stats
from ...core.calling._public import public
from .._shared._normalized_by import normalized_by
from .._shared._prepare import prepare
from ._saved import SaveAs, check_save_as, normalized_saving
from ._virtual_batch import check_virtual_batch_size, normalized_in_virtual_batches


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
    """Batch norm in training: normalizes with the batch statistics and updates the running statistics.

        y = activation((x - μ) / sqrt(σ² + ε) · scale + bias + residual)

    μ and σ² are computed over all axes except ``feature_axes``. σ² divides by n, the number of unmasked
    elements.

    Args:
        x: activations of any rank and any integer, floating (16 bits or wider) or complex dtype.
            Computed in float32 or wider; in float32, accurate for magnitudes between 1e-15 and 1e15.
        stats: running statistics with the shape of the feature axes, from `init_running_stats` or the
            previous step.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        momentum: weight of the *old* running value, in [0, 1]; None weights all batches equally and needs
            ``init_running_stats(..., cumulative=True)``. PyTorch's momentum is the weight of the new value,
            so its 0.1 is 0.9 here.
        epsilon: ε, added to the variance; zero or positive.
        unbiased: update the running variance with the batch variance times n / (n - 1), as PyTorch does.
        mask: boolean or integer, broadcastable to ``x``; True includes an element in the statistics. Masked
            elements affect no statistic and no other element, in the forward or the backward pass. They are
            normalized like all others, but a masked NaN or infinity is treated as the mean.
        axis_name: mapped axis or axes (vmap, pmap or shard_map) whose devices share statistics, weighted by
            count. This takes one all-reduce in the forward pass (two or three float64 numbers per channel)
            and one in the backward pass. Not needed under jit over a mesh.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        virtual_batch_size: number of consecutive examples (along axis 0, then along ``axis_name``) that share
            statistics, regardless of device placement: part of a device's batch, or the batches of several
            devices. The running statistics are updated with all examples of all devices. None: all examples
            share statistics.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` from ``jax.nn``, computed in the same pass;
            None applies no activation. Only ``x`` is saved for the backward pass.
        residual: array with the shape of ``x``, added before the activation. For the backward pass, ``relu``
            and ``leaky_relu`` save one boolean per element; other activations save ``residual`` itself.
        save_as: what to save for the backward pass instead of ``x``; ``y`` and the statistics stay exact.
            ``"output"`` saves ``y``, which the next layer keeps anyway, so this layer adds nothing (In-Place
            ABN, https://arxiv.org/abs/1712.02616). It requires an ``activation`` of None or ``leaky_relu``.
            The normalized ``x`` is then recovered to within u · max(1, abs(bias / scale)), where u is the
            rounding error of ``y``. Channels with abs(bias / scale) above 1 / sqrt(u), or with a ``scale`` of
            0, get NaN gradients, so do not initialize ``scale`` to 0. A floating dtype saves the normalized
            ``x`` rounded to it: ``jnp.bfloat16`` halves the memory for a float32 ``x`` and rounds by up to
            0.4 %. Not supported with ``mask``, ``residual``, ``axis_index_groups`` or ``virtual_batch_size``.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale``, ``bias`` and ``residual`` promote
            to.

    Returns:
        ``y``, with the shape of ``x``, and updated RunningStats, with the shapes and dtypes of ``stats``. If
        all elements are masked, ``stats`` is returned unchanged and ``y`` is finite.

    Raises:
        ValueError: If a shape, axis, mask, dtype, epsilon or momentum is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (256, 8, 8, 4))
        >>> y, stats = jn.batch_norm(x, jn.init_running_stats(4), momentum=0.9)
        >>> print(y.mean().round(3), y.std().round(3), stats.var.shape)
        0.0 1.0 (4,)
    """
    p = prepare(
        x,
        {"scale": scale, "bias": bias},
        feature_axes=feature_axes,
        mask=mask,
        dtype=dtype,
        activation=activation,
        residual=residual,
    )
    guess, _ = broadcast_running_stats(stats, p.x, p.features)
    reduced = complement(p.features, p.x.ndim)
    if save_as is not None:
        check_save_as(save_as, activation, p, axis_index_groups, virtual_batch_size)
        y, m = normalized_saving(save_as, p, reduced, epsilon, axis_name, activation)
    elif virtual_batch_size is not None:
        check_virtual_batch_size(virtual_batch_size, p.features, axis_index_groups)
        y, m = normalized_in_virtual_batches(
            virtual_batch_size, p, reduced, epsilon, axis_name, activation
        )
    else:

        def take_moments(x: jax.Array, mask: jax.Array | None, narrow: jax.Array) -> Moments:
            devices = axis_name, axis_index_groups
            return reduce_moments(x, reduced, mask, *devices, narrow=narrow, guess=guess)

        y, m = normalized_by(take_moments, p, epsilon=epsilon, activation=activation)
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
    """Batch norm in evaluation: normalizes each example independently with the running statistics.

        y = activation((x - mean) / sqrt(var + ε) · scale + bias + residual)

    Args:
        x: activations of any rank and any integer, floating (16 bits or wider) or complex dtype; computed in
            float32 or wider.
        stats: running statistics with the shape of the feature axes.
        scale: γ, with the shape of the feature axes; None means 1.
        bias: β, with the shape of the feature axes; None means 0.
        feature_axes: axes that are not reduced: -1 for channels last, 1 for channels first.
        epsilon: ε, added to the variance; zero or positive.
        mask: boolean or integer, broadcastable to ``x``; a masked NaN or infinity is treated as the mean, so
            it does not affect gradients.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` from ``jax.nn``, computed in the same pass;
            None applies no activation.
        residual: array with the shape of ``x``, added before the activation.
        dtype: dtype of ``y``; None means the dtype that ``x``, ``scale``, ``bias`` and ``residual`` promote
            to.

    Returns:
        ``y``, with the shape of ``x``. It is differentiable with respect to every array argument.

    Raises:
        ValueError: If a shape, axis, dtype or epsilon is invalid.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = jn.RunningStats(mean=jnp.array([10.0]), var=jnp.array([4.0]))
        >>> print(jn.batch_norm_inference(jnp.array([[10.0], [12.0]]), stats, epsilon=0.0))
        [[0.]
         [1.]]
    """
    p = prepare(
        x,
        {"scale": scale, "bias": bias},
        feature_axes=feature_axes,
        mask=mask,
        dtype=dtype,
        activation=activation,
        residual=residual,
    )
    mean, var = broadcast_running_stats(stats, p.x, p.features)
    y = normalize(
        upcast(p.x, mean, var, *p.parameters.values(), p.residual),
        mean,
        var,
        *p.parameters.values(),
        epsilon=epsilon,
        mask=p.mask,
        activation=activation,
        residual=p.residual,
    )
    return y.astype(p.dtype)
