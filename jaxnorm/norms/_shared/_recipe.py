"""Recipes: framework-independent descriptions of layers, with their options, variables and computation.

Each norm that Flax does not provide has one recipe, a dataclass defined next to its function. `jaxnorm.linen`
and `jaxnorm.nnx` turn recipes into modules, which create the variables and store the updated state.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._axes import Axes, canonical_axes
from ...core._precision import dtype_of_mean
from ...core._running import RunningStats, init_running_stats
from ._running_norm import RunningNorm

Shape = tuple[int, ...]
Initializer = Callable[[jax.Array, Shape, Any], jax.Array]
"""Returns a parameter for a key, a shape and a dtype, like those of `jax.nn.initializers`."""
State = Mapping[str, jax.Array]


class Parameter(NamedTuple):
    """The initializer and shape of a parameter."""

    init: Initializer
    shape: Shape


class Call(NamedTuple):
    """The arguments and mode of a layer call, without x and the variables."""

    condition: Any
    """Extra input of conditional norms, passed after x: labels, a style."""
    mask: jax.Array | None
    evaluating: bool
    devices: Mapping[str, Any]
    """axis_name and axis_index_groups if the layer has them; None in ``init``, outside of any mapped axis."""


@dataclass(kw_only=True, eq=False)
class Recipe:
    """A layer; ``shape`` in its methods is the shape of the feature axes."""

    feature_axes: Axes = -1
    """Axes along which the parameters vary: -1 for channels last."""
    dtype: DTypeLike | None = None
    """Dtype of the result; None means the dtype that the input and the parameters promote to."""
    param_dtype: DTypeLike = jnp.float32
    """Dtype of the parameters."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Returns the parameters by name."""
        return {}

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """Returns the initial state, kept between steps but not trained, by name.

        ``dtype`` is the dtype of the input: for complex inputs, running means are complex.
        """
        return {}

    def _normalized(self, x: jax.Array, variables: State, call: Call) -> tuple[Any, State]:
        """Returns the output and the updated state variables, by name."""
        raise NotImplementedError

    def _options(self, call: Call, function: Callable[..., Any]) -> dict[str, Any]:
        """Returns the keyword arguments of ``function`` that are fields of the layer or part of its call."""
        return options_of(self, function, **call.devices, mask=call.mask)


def options_of(layer: Any, function: Callable[..., Any], **more: Any) -> dict[str, Any]:
    """Returns the keyword arguments of ``function`` that are fields of ``layer`` or among ``more``."""
    known = {field.name: getattr(layer, field.name) for field in fields(layer)} | more
    return {name: known[name] for name in _keywords_of(function) if name in known}


@functools.cache
def _keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the names of the keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def check_last_axis(recipe: Recipe, x: jax.Array) -> None:
    """Checks the feature axis of a layer that supports only the last axis.

    Raises:
        ValueError: If ``feature_axes`` is not the last axis.
    """
    if canonical_axes(recipe.feature_axes, x.ndim, "feature_axes") != (x.ndim - 1,):
        raise ValueError(
            f"feature_axes must be the last axis in this layer; got {recipe.feature_axes!r} for x of shape "
            f"{x.shape}. Move the features there."
        )


@dataclass(kw_only=True, eq=False)
class Affine(Recipe):
    """A layer with a learned scale and bias, each with the shape of the feature axes."""

    use_scale: bool = True
    """Whether to multiply by a learned scale."""
    use_bias: bool = True
    """Whether to add a learned bias."""
    scale_init: Initializer = initializers.ones
    """Initializer of the scale."""
    bias_init: Initializer = initializers.zeros
    """Initializer of the bias."""

    def _parameters(self, shape: Shape) -> dict[str, Parameter]:
        """``scale`` and ``bias``, if ``use_scale`` and ``use_bias`` are set."""
        found = {}
        if self.use_scale:
            found["scale"] = Parameter(self.scale_init, shape)
        if self.use_bias:
            found["bias"] = Parameter(self.bias_init, shape)
        return found


def scale_and_bias(variables: State) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns the scale and bias; None for one that the layer does not have."""
    return variables.get("scale"), variables.get("bias")


@dataclass(kw_only=True, eq=False)
class Shared(Recipe):
    """A layer with statistics that devices may share."""

    axis_name: AxisName | None = None
    """Mapped axis or axes whose devices share statistics. Not used in ``init``."""
    axis_index_groups: AxisIndexGroups | None = None
    """Groups of devices along ``axis_name``; each group is reduced separately."""


@dataclass(kw_only=True, eq=False)
class Running(Shared):
    """A layer with running statistics, updated in training and used in evaluation."""

    use_running_average: bool | None = None
    """Evaluation (True) or training (False); None means it is set in each call."""

    def running_norm(self) -> RunningNorm | None:
        """Tells the tools how the layer keeps running statistics."""
        raise NotImplementedError

    def _in_mode(
        self,
        call: Call,
        train: Callable[..., Any],
        evaluate: Callable[..., Any],
        *given: Any,
        **other: Any,
    ) -> tuple[jax.Array, State]:
        """Calls the function of the mode with the arrays ``given`` and the options of the layer.

        Options in ``other`` have precedence.
        """
        if call.evaluating:
            return evaluate(*given, **self._options(call, evaluate) | other), {}
        y, updated = train(*given, **self._options(call, train) | other)
        return y, present(updated)


@dataclass(kw_only=True, eq=False)
class Tracked(Running):
    """A layer whose running statistics are moving averages of mean and variance."""

    momentum: float | jax.Array | None = 0.99
    """Weight of the *old* running value (PyTorch: the new one); None weights all batches equally."""

    def _initial_state(self, shape: Shape, dtype: DTypeLike) -> dict[str, jax.Array]:
        """``mean``, ``var`` and, if ``momentum`` is None, ``count``."""
        fresh = init_running_stats(shape, dtype_of_mean(dtype), cumulative=self.momentum is None)
        return present(fresh)


def stats_of(variables: State) -> RunningStats:
    """Returns the running statistics from the variables of a layer."""
    return RunningStats(variables["mean"], variables["var"], variables.get("count"))


def present(stats: NamedTuple) -> dict[str, jax.Array]:
    """Returns running statistics as a dict of state variables, without those that are None."""
    return {name: value for name, value in stats._asdict().items() if value is not None}
