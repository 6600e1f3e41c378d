"""`BatchNorm` as an NNX module."""

from collections.abc import Callable, Mapping
from functools import partialmethod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from flax.typing import PromoteDtypeFn
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, canonical_axes, feature_shape
from ..core._running import untracked_stats
from ..core.calling._arguments import check_fields, own_arguments
from ..core.calling._explained import explained
from ..norms._shared._running_norm import RunningNorm
from ..norms.batch._batch_norm import batch_norm, batch_norm_inference
from ..norms.batch._saved import SaveAs
from ._transformable import transformable
from ._variables import (
    Features,
    is_evaluating,
    make_running_stats,
    parameter,
    promote_dtype,
    promoted,
    read_running_stats,
    shape_of,
    write_running_stats,
)


class BatchNorm(nnx.Module):
    """Batch norm with explicit running statistics; has all arguments of `flax.nnx.BatchNorm`.

    ``scale`` and ``bias`` are `nnx.Param`, the running ``mean`` and ``var`` are `nnx.BatchStat`. All have the
    feature shape. Computes `jaxnorm.batch_norm` in training and `jaxnorm.batch_norm_inference` in evaluation;
    see those functions for formulas and details of the options. ``.train()`` and ``.eval()`` switch between
    the two modes.

    Args:
        num_features: the feature shape: one size, or a sequence with one size per axis in ``axis``.
        use_running_average: True normalizes with the running statistics (evaluation), False with the batch
            statistics (training). The call can override it.
        axis: the feature axis or axes, which are not reduced. (The functions call this ``feature_axes``.)
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None weights
            all batches equally and counts them in ``count``.
        epsilon: added to the variance.
        dtype: dtype of the result; None is the dtype that the input and the parameters promote to.
        param_dtype: dtype of scale and bias. If it is complex, so is the running mean.
        use_bias: whether to add a learned bias.
        use_scale: whether to multiply by a learned scale.
        bias_init: initializer for the bias.
        scale_init: initializer for the scale.
        axis_name: mapped axis or axes whose devices share statistics, weighted by element count.
        axis_index_groups: groups of devices along ``axis_name``; each group is reduced separately.
        use_fast_variance: ignored, accepted for compatibility with Flax. The variance is always computed in a
            numerically stable way that is just as fast.
        promote_dtype: function that promotes input, scale and bias first. The default promotes as described
            under ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: metadata of the bias variable, such as its sharding.
        scale_metadata: metadata of the scale variable.
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
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = 5 + 3 * jax.random.normal(jax.random.key(0), (32, 8, 8, 16))
        >>> layer = jnx.BatchNorm(16, momentum=0.9, rngs=nnx.Rngs(0))
        >>> y = layer(x)
        >>> print(layer.mean[...].shape, y.std().round(3))
        (16,) 1.0
        >>> layer.eval()
        >>> y = layer(x)
    """

    scale: nnx.Param[jax.Array]  # None if use_scale is False
    bias: nnx.Param[jax.Array]  # None if use_bias is False
    mean: nnx.BatchStat[jax.Array]  # None without running statistics, like var
    var: nnx.BatchStat[jax.Array]
    count: nnx.BatchStat[jax.Array] | None

    @explained
    def __init__(
        self,
        num_features: Features,
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: float | jax.Array | None = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: nnx.Initializer = initializers.zeros,
        scale_init: nnx.Initializer = initializers.ones,
        axis_name: AxisName | None = None,
        axis_index_groups: AxisIndexGroups | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] | None = None,
        scale_metadata: Mapping[str, Any] | None = None,
        unbiased: bool = False,
        track_running_stats: bool = True,
        virtual_batch_size: int | None = None,
        activation: str | None = None,
        save_as: SaveAs | None = None,
    ) -> None:
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.unbiased = unbiased
        self.track_running_stats = track_running_stats
        self.virtual_batch_size = virtual_batch_size
        self.activation = activation
        self.save_as = save_as
        check_fields(own_arguments(self, BatchNorm.__init__))
        shape = shape_of(num_features)
        make_running_stats(self, shape, tracked=track_running_stats)
        self.scale = parameter(use_scale, scale_init, shape, param_dtype, rngs, scale_metadata)
        self.bias = parameter(use_bias, bias_init, shape, param_dtype, rngs, bias_metadata)

    @transformable
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes ``x`` and, in training, updates the running statistics.

        Args:
            x: activations of any rank.
            use_running_average: True for evaluation, False for training; overrides the module's setting.
            mask: True for the elements to include; broadcastable to ``x``. Masked NaNs and infinities affect
                no other output or gradient, in training or evaluation.
            residual: array with the shape of ``x``, added before the activation.

        Returns:
            The normalized values, with the shape of ``x``.

        Raises:
            ValueError: If ``use_running_average`` is None in both the module and the call, or if an argument
                is invalid for `jaxnorm.batch_norm`.
        """
        # As in Flax, promote_dtype also gets the statistics; its results are dropped to avoid rounding them.
        names = "mean", "var", "scale", "bias"
        x, _, _, scale, bias = promoted(self, jnp.asarray(x), *names)
        axes = canonical_axes(self.axis, x.ndim, "axis")
        options: dict[str, Any] = {
            "feature_axes": axes,
            "epsilon": self.epsilon,
            "mask": mask,
            "activation": self.activation,
            "residual": residual,
            "dtype": self.dtype,
        }
        batch: dict[str, Any] = {
            "save_as": self.save_as,
            "axis_name": self.axis_name,
            "axis_index_groups": self.axis_index_groups,
            "virtual_batch_size": self.virtual_batch_size,
            **options,
        }
        if not self.track_running_stats:
            stats = untracked_stats(x, feature_shape(x, axes))
            return batch_norm(x, stats, scale, bias, **batch)[0]
        stats = read_running_stats(self)
        if is_evaluating(self, use_running_average):
            return batch_norm_inference(x, stats, scale, bias, **options)
        y, updated = batch_norm(
            x,
            stats,
            scale,
            bias,
            momentum=self.momentum,
            unbiased=self.unbiased,
            **batch,
        )
        write_running_stats(self, updated)
        return y

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        if not self.track_running_stats:
            return None
        return RunningNorm(self.axis, self.epsilon, self.momentum, self.unbiased)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets ``use_running_average``; called by `nnx.view`.

        Args:
            use_running_average: True for evaluation, False for training; None leaves the setting unchanged.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class GhostBatchNorm(BatchNorm):
    """Batch norm over virtual batches (32 examples by default), whose statistics are noisier.

    This is `BatchNorm` with a ``virtual_batch_size`` (Hoffer et al., 2017, https://arxiv.org/abs/1705.08741).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> x = jax.random.normal(jax.random.key(0), (256, 4))
        >>> layer = jnx.GhostBatchNorm(4, virtual_batch_size=64, rngs=nnx.Rngs(0))
        >>> y = layer(x, use_running_average=False)
        >>> print(jnp.abs(y.reshape(4, 64, 4).mean(1)).max() < 1e-5)
        True
    """

    __init__: Callable[..., None] = partialmethod(BatchNorm.__init__, virtual_batch_size=32)  # pyright: ignore[reportAssignmentType]
