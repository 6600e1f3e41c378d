"""`BatchNorm` as a Linen module."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, canonical_axes, feature_shape
from ..core._running import untracked_stats
from ..core.calling._explained import explaining_fields
from ..norms._shared._running_norm import RunningNorm
from ..norms.batch._batch_norm import batch_norm, batch_norm_inference
from ..norms.batch._saved import SaveAs
from ._variables import Checked, RunningVariables, bias_of, devices_of, is_evaluating, scale_of


class BatchNorm(Checked):
    """Batch norm with explicit running statistics; has all fields of `flax.linen.BatchNorm`.

    The parameters ``scale`` and ``bias`` are in the collection ``params``, the running ``mean`` and ``var``
    in ``batch_stats``. All have the feature shape, so Flax checkpoints load unchanged. Computes
    `jaxnorm.batch_norm` in training and `jaxnorm.batch_norm_inference` in evaluation; see those functions for
    formulas and details of the options.

    Attributes:
        use_running_average: True normalizes with the running statistics (evaluation), False with the batch
            statistics (training). Set it here or in the call, not in both.
        axis: the feature axis or axes, which are not reduced. (The functions call this ``feature_axes``.)
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None weights
            all batches equally and counts them in ``batch_stats/count``.
        epsilon: added to the variance.
        dtype: dtype of the result; None is the dtype that the input and the parameters promote to.
        param_dtype: dtype of scale and bias.
        use_bias: whether to add a learned bias.
        use_scale: whether to multiply by a learned scale.
        bias_init: initializer for the bias.
        scale_init: initializer for the scale.
        axis_name: mapped axis or axes whose devices share statistics, weighted by element count. Ignored in
            ``init``.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. The variance is always computed in a
            numerically stable way that is just as fast.
        force_float32_reductions: if False, stores the running statistics in ``param_dtype``, as Flax does.
            They are still computed in float32 or wider.
        unbiased: whether to multiply the batch variance by n / (n - 1) for the running variance, as PyTorch
            does.
        track_running_stats: if False, keeps no running statistics: evaluation also normalizes with batch
            statistics, and ``use_running_average`` is ignored.
        virtual_batch_size: number of consecutive examples that share statistics: a part of one device's
            batch, or the examples of several devices along ``axis_name``.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu``, applied after the norm in the same pass;
            or None.
        save_as: what to save for the backward pass instead of ``x``: ``"output"`` or a floating dtype. See
            `jaxnorm.batch_norm` for the cost of each.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (32, 8, 8, 16))
        >>> layer = jnl.BatchNorm(momentum=0.9)
        >>> variables = layer.init(jax.random.key(1), x, use_running_average=False)
        >>> y, updated = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        >>> y_eval = layer.apply({**variables, **updated}, x, use_running_average=True)
        >>> jax.tree.map(jnp.shape, variables)
        {'batch_stats': {'mean': (16,), 'var': (16,)}, 'params': {'bias': (16,), 'scale': (16,)}}
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float | jax.Array | None = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: initializers.Initializer = initializers.zeros
    scale_init: initializers.Initializer = initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: AxisIndexGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    unbiased: bool = dataclasses.field(default=False, kw_only=True)
    track_running_stats: bool = dataclasses.field(default=True, kw_only=True)
    virtual_batch_size: int | None = dataclasses.field(default=None, kw_only=True)
    activation: str | None = dataclasses.field(default=None, kw_only=True)
    save_as: SaveAs | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    @explaining_fields
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes ``x`` and, in training, updates the collection ``batch_stats``.

        Args:
            x: activations of any rank.
            use_running_average: True for evaluation, False for training; set it here or in the module, not in
                both.
            mask: True for the elements to include; broadcastable to ``x``. Masked NaNs and infinities affect
                no other output or gradient, in training or evaluation.
            residual: array with the shape of ``x``, added before the activation.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If ``use_running_average`` is set in both the module and the call or in neither, or if
                an argument is invalid for `jaxnorm.batch_norm`.
        """
        x = jnp.asarray(x)
        axes = canonical_axes(self.axis, x.ndim, "axis")
        shape = feature_shape(x, axes)
        options: dict[str, Any] = {
            "feature_axes": axes,
            "epsilon": self.epsilon,
            "mask": mask,
            "activation": self.activation,
            "residual": residual,
            "dtype": self.dtype,
        }
        parameters = scale_of(self, shape), bias_of(self, shape)
        batch = {
            "save_as": self.save_as,
            **options,
            **devices_of(self, "virtual_batch_size"),
        }
        if not self.track_running_stats:
            return batch_norm(x, untracked_stats(x, shape), *parameters, **batch)[0]
        evaluating = is_evaluating(self, use_running_average)
        stats = RunningVariables(self, x, shape, evaluating=evaluating)
        if evaluating:
            return batch_norm_inference(x, stats.read(), *parameters, **options)
        y, updated = batch_norm(
            x,
            stats.read(),
            *parameters,
            momentum=self.momentum,
            unbiased=self.unbiased,
            **batch,
        )
        stats.write(updated)
        return y

    @nn.nowrap
    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        if not self.track_running_stats:
            return None
        return RunningNorm(self.axis, self.epsilon, self.momentum, self.unbiased)


class GhostBatchNorm(BatchNorm):
    """Batch norm over virtual batches (32 examples by default), whose statistics are noisier.

    This is `BatchNorm` with a ``virtual_batch_size`` (Hoffer et al., 2017, https://arxiv.org/abs/1705.08741).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (256, 4))
        >>> layer = jnl.GhostBatchNorm(use_running_average=False, virtual_batch_size=64)
        >>> variables = layer.init(jax.random.key(1), x)
        >>> y, _ = layer.apply(variables, x, mutable=["batch_stats"])
        >>> print(jnp.abs(y.reshape(4, 64, 4).mean(1)).max() < 1e-5)
        True
    """

    virtual_batch_size: int | None = dataclasses.field(default=32, kw_only=True)
