"""Spatially adaptive normalization, SPADE (Park et al., 2019, https://arxiv.org/abs/1903.07291)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._precision import arithmetic_dtype, result_dtype
from .._shared._initial import lecun_normal
from .._shared._recipe import (
    Call,
    Initializer,
    Parameter,
    Recipe,
    Shape,
    State,
    Tracked,
    check_last_axis,
    stats_of,
)
from .._shared._running_norm import RunningNorm
from ..batch._batch_norm import batch_norm, batch_norm_inference
from ..sample._group_norm import group_norm
from ..sample._instance_norm import instance_norm
from ._modulate import modulate

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@dataclass(kw_only=True, eq=False)
class MappedRecipe(Recipe):
    """A norm of images with a scale and bias per pixel, computed from a map that is passed after x."""

    map_channels: int
    """Number of channels of the map."""
    hidden: int = 128
    """Number of channels of h."""
    kernel_size: int = 3
    """Kernel size of all three convolutions."""
    epsilon: float = 1e-5
    """Added to the variance."""
    kernel_init: Initializer = lecun_normal
    """Initializer of the first kernel. The other two start at 0, so the layer starts as the bare norm."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Kernels and biases of the convolution of the map and of those that compute scale and bias."""
        window, (features,) = (self.kernel_size, self.kernel_size), shape
        zeros = initializers.zeros
        return {
            "kernel": Parameter(self.kernel_init, (*window, self.map_channels, self.hidden)),
            "bias": Parameter(zeros, (self.hidden,)),
            "affine_kernel": Parameter(zeros, (*window, self.hidden, 2 * features)),
            "affine_bias": Parameter(zeros, (2 * features,)),
        }

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[jax.Array, State]:
        """Applies the norm; only batch norm has a state to update."""
        check_last_axis(self, x)
        drawn = jnp.asarray(call.condition)
        if x.ndim != 4 or drawn.ndim != 4 or len(drawn) != len(x):
            raise ValueError(
                f"x and its map must have shape (N, height, width, channels) with the same N; got shapes "
                f"{x.shape} and {drawn.shape}. Put the channels last."
            )
        parameters = {name: variables[name] for name in self._parameters(x.shape[-1:])}
        wide = arithmetic_dtype(x, drawn, *parameters.values())
        rows, columns = (
            jnp.arange(n) * m // n for n, m in zip(x.shape[1:3], drawn.shape[1:3], strict=True)
        )
        drawn = drawn.astype(wide)[:, rows][:, :, columns]

        def convolved(a: jax.Array, name: str) -> jax.Array:
            kernel, bias = (parameters[f"{name}{what}"].astype(wide) for what in ("kernel", "bias"))
            y = lax.conv_general_dilated(a, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)
            return y + bias.reshape(1, 1, 1, -1)

        hidden = jax.nn.relu(convolved(drawn, ""))
        scale, bias = jnp.split(convolved(hidden, "affine_"), 2, axis=-1)
        y, updated = self._bare(x, variables, call, wide)
        dtype = result_dtype(self.dtype, x, *parameters.values())
        return modulate(y, scale, bias, scale_offset=1.0, dtype=dtype), updated

    def _bare(
        self, x: jax.Array, variables: State, call: Call, dtype: DTypeLike
    ) -> tuple[jax.Array, State]:
        """Returns the norm without scale and bias, and the updated state variables."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class SpadeRecipe(MappedRecipe):
    """SPADE: instance norm with a scale and bias per pixel, computed from a map that is passed after x.

    Called with a map (N, height, width, map_channels) after x (N, H, W, C). The map is resized to x by
    nearest-neighbor interpolation, as in PyTorch's ``nearest``: relative pixel positions are rounded down.

        h = relu(conv(map))        y = instance_norm(x) · (1 + conv_γ(h)) + conv_β(h)

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x = jnp.ones((2, 8, 8, 4))
        >>> layer = jnl.Spade(map_channels=3)
        >>> variables = layer.init(jax.random.key(0), x, jnp.ones((2, 4, 4, 3)))
        >>> print(*variables["params"])
        kernel bias affine_kernel affine_bias
        >>> layer = jnx.Spade(4, map_channels=3, rngs=nnx.Rngs(0))
        >>> y = layer(x, jnp.ones((2, 4, 4, 3)))
        >>> print(*nnx.state(layer), y.shape)
        affine_bias affine_kernel bias kernel (2, 8, 8, 4)
    """

    def _bare(
        self, x: jax.Array, variables: State, call: Call, dtype: DTypeLike
    ) -> tuple[jax.Array, State]:
        """Instance norm."""
        options: dict[str, Any] = self._options(call, instance_norm) | {"dtype": dtype}
        return instance_norm(x, **options), {}


@dataclass(kw_only=True, eq=False)
class SpadeGroupNormRecipe(MappedRecipe):
    """SPADE on group norm: see `Spade`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x, drawn = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 4, 4, 3))
        >>> layer = jnl.SpadeGroupNorm(map_channels=3, num_groups=2)
        >>> print(layer.init_with_output(jax.random.key(0), x, drawn)[0].shape)
        (2, 8, 8, 4)
        >>> layer = jnx.SpadeGroupNorm(4, map_channels=3, num_groups=2, rngs=nnx.Rngs(0))
        >>> print(layer(x, drawn).shape)
        (2, 8, 8, 4)
    """

    num_groups: int | None = 32
    """Number of groups; must divide the number of channels."""
    group_size: int | None = None
    """Channels per group, as an alternative to ``num_groups``, which must then be None."""

    def _bare(
        self, x: jax.Array, variables: State, call: Call, dtype: DTypeLike
    ) -> tuple[jax.Array, State]:
        """Group norm."""
        options: dict[str, Any] = self._options(call, group_norm) | {"dtype": dtype}
        return group_norm(x, **options), {}


@dataclass(kw_only=True, eq=False)
class SpadeBatchNormRecipe(MappedRecipe, Tracked):
    """SPADE on batch norm, as in the authors' networks: see `Spade`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import linen as jnl, nnx as jnx
        >>> x, drawn = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 4, 4, 3))
        >>> layer = jnl.SpadeBatchNorm(map_channels=3)
        >>> variables = layer.init(jax.random.key(0), x, drawn, use_running_average=False)
        >>> print(*variables["batch_stats"])
        mean var
        >>> layer = jnx.SpadeBatchNorm(4, map_channels=3, rngs=nnx.Rngs(0))
        >>> print(layer(x, drawn, use_running_average=False).shape)
        (2, 8, 8, 4)
    """

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        return RunningNorm(self.feature_axes, self.epsilon, self.momentum)

    def _bare(
        self, x: jax.Array, variables: State, call: Call, dtype: DTypeLike
    ) -> tuple[jax.Array, State]:
        """Batch norm of the mode."""
        modes = batch_norm, batch_norm_inference
        return self._in_mode(call, *modes, x, stats_of(variables), dtype=dtype)
