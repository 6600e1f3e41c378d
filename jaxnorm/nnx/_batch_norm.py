"""`BatchNorm` as an NNX module."""

from collections.abc import Mapping
from functools import partialmethod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers
from flax.typing import PromoteDtypeFn
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._arguments import check_fields
from ..core._axes import Axes, canonical_axes, feature_shape
from ..core._explained import explained
from ..core._running import untracked_stats
from ..norms._batch_norm import batch_norm, batch_norm_inference
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
    """Batch norm over explicit running statistics: `flax.nnx.BatchNorm`, argument for argument.

    ``scale`` and ``bias`` are `nnx.Param`, the running ``mean`` and ``var`` `nnx.BatchStat`, all of the
    feature shape. What is computed is `jaxnorm.batch_norm` in training and
    `jaxnorm.batch_norm_inference` in evaluation; their pages have the formulas, and what is meant by
    every option. ``.train()`` and ``.eval()`` choose between them.

    Args:
        num_features: the feature shape: a size, or several where ``axis`` has several.
        use_running_average: True normalizes with the running statistics (evaluation), False with those of
            the batch (training). The call may say otherwise.
        axis: the feature axis or axes, which are kept. (The functions call this ``feature_axes``.)
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None is
            the plain average of all batches, counted in ``count``.
        epsilon: added to the variance.
        dtype: of the result; None is what the input and the parameters promote to.
        param_dtype: of scale and bias. If complex, the running mean is too.
        use_bias: whether there is a bias.
        use_scale: whether there is a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        axis_name: one or several mapped axes whose devices share statistics, weighted by count.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        promote_dtype: what to do to input, scale and bias before anything else, in place of the rule of
            ``dtype``.
        rngs: random streams for the initializers.
        bias_metadata: of the variable of the bias, such as its sharding.
        scale_metadata: of the variable of the scale.
        unbiased: the running variance gets the batch's variance times n / (n - 1), as PyTorch's does.
        track_running_stats: False keeps no running statistics: evaluation too normalizes with those of the
            batch, and ``use_running_average`` is not read.
        virtual_batch_size: so many neighbouring examples are normalized with statistics of their own, fewer
            than a device has or those of several devices of ``axis_name``.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` after the norm, in the same pass; or None.
        save_as: what is saved for the backward pass instead of ``x``: ``"output"`` or a floating dtype. See
            `jaxnorm.batch_norm` for what each costs.

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
        save_as: Any = None,
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
        check_fields(vars(self))
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
        """Normalizes ``x``, and in training updates the running statistics.

        Args:
            x: activations of any rank.
            use_running_average: evaluation (True) or training (False), whatever the module says.
            mask: True counts; broadcastable to ``x``. In evaluation, too, a masked NaN or infinity
                reaches nothing else.
            residual: of the shape of ``x``, added before the activation.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: nobody says ``use_running_average``, or anything that `jaxnorm.batch_norm` refuses.
        """
        # Statistics are handed over as by Flax, but used as they are: no dtype rounds them.
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

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
            use_running_average: evaluation (True) or training (False); None leaves it as it is.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class GhostBatchNorm(BatchNorm):
    """Batch norm of virtual batches, of 32 examples unless told otherwise, whose statistics are noisier.

    It is `BatchNorm` with ``virtual_batch_size`` (Hoffer et al., 2017, https://arxiv.org/abs/1705.08741).

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

    __init__ = partialmethod(BatchNorm.__init__, virtual_batch_size=32)  # pyright: ignore[reportAssignmentType]
