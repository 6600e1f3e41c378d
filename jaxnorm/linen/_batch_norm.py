"""`BatchNorm` as a Linen module: creates variables, calls the function, stores state."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from ..core._axes import canonical_axes
from ..core._precision import promoted_dtype
from ..core._running import RunningStats, init_running_stats
from ..norms._batch_norm import batch_norm, batch_norm_inference


class BatchNorm(nn.Module):
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

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes ``x``, and in training updates the collection ``batch_stats``.

        Args:
            x: activations of any rank.
            use_running_average: evaluation (True) or training (False), if the module does not say.
            mask: True counts; broadcastable to ``x``. Only read in training.

        Returns:
            The normalized values, of the shape of ``x``.

        Raises:
            ValueError: ``use_running_average`` is given twice or not at all, or anything that
                `jaxnorm.batch_norm` refuses.
        """
        evaluating = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        x = jnp.asarray(x)
        axes = canonical_axes(self.axis, x.ndim, "axis")
        shape = tuple(x.shape[i] for i in axes)
        stats = self._running_stats(shape, x.dtype, evaluating)
        scale = (
            self.param("scale", self.scale_init, shape, self.param_dtype)
            if self.use_scale
            else None
        )
        bias = (
            self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        )
        options = {"feature_axes": axes, "epsilon": self.epsilon, "dtype": self.dtype}
        current = RunningStats(**{name: variable.value for name, variable in stats.items()})
        if evaluating:
            return batch_norm_inference(x, current, scale, bias, **options)
        y, updated = batch_norm(
            x,
            current,
            scale,
            bias,
            momentum=self.momentum,
            unbiased=self.unbiased,
            mask=mask,
            axis_name=None if self.is_initializing() else self.axis_name,
            axis_index_groups=None if self.is_initializing() else self.axis_index_groups,
            **options,
        )
        if not self.is_initializing():
            for name, variable in stats.items():
                variable.value = getattr(updated, name)
        return y

    @nn.nowrap
    def _running_stats(
        self, shape: tuple[int, ...], x_dtype: Any, evaluating: bool
    ) -> dict[str, nn.Variable]:
        """The variables of `RunningStats`, created on first use."""
        dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        if jnp.issubdtype(x_dtype, jnp.complexfloating):
            dtype = promoted_dtype(jnp.dtype(dtype), jnp.complex64)
        # Evaluation reads no count, so a checkpoint need not have one.
        counting = self.momentum is None and (self.is_initializing() or not evaluating)
        fresh = init_running_stats(shape, dtype, cumulative=counting)
        names = [name for name, value in fresh._asdict().items() if value is not None]
        return {
            name: self.variable("batch_stats", name, lambda value: value, getattr(fresh, name))
            for name in names
        }
