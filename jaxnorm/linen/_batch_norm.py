"""`BatchNorm` as a Linen module: creates variables, calls the function, stores state."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._axes import canonical_axes, feature_shape
from ..core._explained import explaining_fields
from ..core._running import untracked_stats
from ..norms._batch_norm import batch_norm, batch_norm_inference
from ._variables import Checked, RunningVariables, bias_of, devices_of, is_evaluating, scale_of


class BatchNorm(Checked):
    """Batch norm over explicit running statistics: `flax.linen.BatchNorm`, field for field.

    Parameters ``scale`` and ``bias`` live in the collection ``params``, the running ``mean`` and ``var``
    in ``batch_stats``, all of the feature shape: a Flax checkpoint loads as it is. What is computed is
    `jaxnorm.batch_norm` in training and `jaxnorm.batch_norm_inference` in evaluation; their pages have
    the formulas, and what is meant by every option.

    Attributes:
        use_running_average: True normalizes with the running statistics (evaluation), False with those of
            the batch (training). Set it here or in the call, not in both.
        axis: the feature axis or axes, which are kept. (The functions call this ``feature_axes``.)
        momentum: the weight of the *old* running value, in [0, 1]; PyTorch's 0.1 is 0.9 here. None is
            the plain average of all batches, counted in ``batch_stats/count``.
        epsilon: added to the variance.
        dtype: of the result; None is what the input and the parameters promote to.
        param_dtype: of scale and bias.
        use_bias: whether there is a bias.
        use_scale: whether there is a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        axis_name: one or several mapped axes whose devices share statistics, weighted by count. Not used
            in ``init``.
        axis_index_groups: groups of devices along ``axis_name`` that keep to themselves.
        use_fast_variance: accepted for Flax's sake and ignored: the variance is stable and as fast.
        force_float32_reductions: False stores the running statistics in ``param_dtype``, as Flax does.
            They are computed in float32 or wider all the same.
        unbiased: the running variance gets the batch's variance times n / (n - 1), as PyTorch's does.
        track_running_stats: False keeps no running statistics: evaluation too normalizes with those of the
            batch, and ``use_running_average`` is not read.
        virtual_batch_size: so many neighbouring examples are normalized with statistics of their own, fewer
            than a device has or those of several devices of ``axis_name``.
        activation: ``relu``, ``leaky_relu``, ``silu`` or ``gelu`` after the norm, in the same pass; or None.
        save_as: what is saved for the backward pass instead of ``x``: ``"output"`` or a floating dtype. See
            `jaxnorm.batch_norm` for what each costs.

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
    axis: Any = -1
    momentum: float | jax.Array | None = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: initializers.Initializer = initializers.zeros
    scale_init: initializers.Initializer = initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    unbiased: bool = dataclasses.field(default=False, kw_only=True)
    track_running_stats: bool = dataclasses.field(default=True, kw_only=True)
    virtual_batch_size: int | None = dataclasses.field(default=None, kw_only=True)
    activation: str | None = dataclasses.field(default=None, kw_only=True)
    save_as: Any = dataclasses.field(default=None, kw_only=True)

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
        """Normalizes ``x``, and in training updates the collection ``batch_stats``.

        Args:
            x: activations of any rank.
            use_running_average: evaluation (True) or training (False), if the module does not say.
            mask: True counts; broadcastable to ``x``. In evaluation, too, a masked NaN or infinity
                reaches nothing else.
            residual: of the shape of ``x``, added before the activation.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: ``use_running_average`` is given twice or not at all, or anything that
                `jaxnorm.batch_norm` refuses.
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


class GhostBatchNorm(BatchNorm):
    """Batch norm of virtual batches, of 32 examples unless told otherwise, whose statistics are noisier.

    It is `BatchNorm` with ``virtual_batch_size`` (Hoffer et al., 2017, https://arxiv.org/abs/1705.08741).

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
