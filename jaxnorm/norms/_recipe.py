"""What a layer is in either module system: its options, its variables, and the function that it calls.

A norm that Flax does not have is written once, as a dataclass beside its function. `jaxnorm.linen` and
`jaxnorm.nnx` make modules of it: they create the variables, and store the state that comes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ..core._all_reduce import AxisIndexGroups, AxisName
from ..core._axes import Axes, canonical_axes
from ..core._precision import dtype_of_mean
from ..core._running import RunningStats, init_running_stats

Shape = tuple[int, ...]
State = Mapping[str, jax.Array]


class Parameter(NamedTuple):
    """How a parameter is made."""

    init: Initializer
    shape: Shape


class Call(NamedTuple):
    """What a layer is called with besides its variables, and how."""

    condition: Any
    """What some are called with after x: labels, a style."""
    mask: jax.Array | None
    evaluating: bool
    devices: Mapping[str, Any]
    """axis_name and axis_index_groups; nothing in ``init``, which may run outside of any mapped axis."""


@dataclass(kw_only=True, eq=False)
class Recipe:
    """A layer; ``shape`` below is that of its feature axes."""

    feature_axes: Axes = -1
    """The axes along which the parameters lie: -1 for channels last."""
    dtype: DTypeLike | None = None
    """Of the result; None is what the input and the parameters promote to."""
    param_dtype: DTypeLike = jnp.float32
    """Of the parameters."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """By name."""
        return {}

    def state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """What is kept between steps but not trained, before the first of them: by name.

        Of values of ``dtype``: if that is complex, so is a mean.
        """
        return {}

    def normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """The result, and the new values of what changed of the state."""
        raise NotImplementedError


def check_last_axis(recipe: Recipe, x: jax.Array) -> None:
    """Raises what is wrong with the feature axis of a layer that has no choice.

    Raises:
        ValueError: it is not the last.
    """
    if canonical_axes(recipe.feature_axes, x.ndim, "feature_axes") != (x.ndim - 1,):
        raise ValueError(
            f"feature_axes must be the last axis in this layer; got {recipe.feature_axes!r} for x of shape "
            f"{x.shape}. Move the features there."
        )


@dataclass(kw_only=True, eq=False)
class Affine(Recipe):
    """With a scale and a bias, each of the feature shape."""

    use_scale: bool = True
    """Whether there is a scale."""
    use_bias: bool = True
    """Whether there is a bias."""
    scale_init: Initializer = initializers.ones
    """Initializer of the scale."""
    bias_init: Initializer = initializers.zeros
    """Initializer of the bias."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Those of the two that are wanted."""
        found = {}
        if self.use_scale:
            found["scale"] = Parameter(self.scale_init, shape)
        if self.use_bias:
            found["bias"] = Parameter(self.bias_init, shape)
        return found


def scale_and_bias(variables: State) -> tuple[jax.Array | None, jax.Array | None]:
    """Scale and bias, None if there is none."""
    return variables.get("scale"), variables.get("bias")


@dataclass(kw_only=True, eq=False)
class Shared(Recipe):
    """With statistics that several devices may share."""

    axis_name: AxisName | None = None
    """One or several mapped axes whose devices share statistics. Not used in ``init``."""
    axis_index_groups: AxisIndexGroups | None = None
    """Groups of devices along ``axis_name`` that keep to themselves."""


@dataclass(kw_only=True, eq=False)
class Tracked(Shared):
    """With running statistics, which evaluation uses."""

    use_running_average: bool | None = None
    """Evaluation (True) or training (False); None: the call says."""
    momentum: float | jax.Array | None = 0.99
    """The weight of the *old* running value (PyTorch's is that of the new one); None: the plain average."""

    def state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``mean``, ``var`` and, for the plain average, ``count``."""
        fresh = init_running_stats(shape, dtype_of_mean(dtype), cumulative=self.momentum is None)
        return present(fresh)


def stats_of(variables: State) -> RunningStats:
    """The running statistics among the variables of a layer."""
    return RunningStats(variables["mean"], variables["var"], variables.get("count"))


def present(stats: RunningStats) -> dict[str, jax.Array]:
    """Running statistics as state, by name."""
    return {name: value for name, value in stats._asdict().items() if value is not None}
