"""Helpers for the Linen modules: variables, running statistics and checks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..core._precision import dtype_of_mean
from ..core._running import RunningStats, init_running_stats
from ..core.calling._arguments import check_fields, check_flag, own_fields


def scale_of(module: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """Returns the parameter ``scale`` of ``module``, if any. Call it before `bias_of`, as Flax does."""
    if not module.use_scale:
        return None
    return module.param("scale", module.scale_init, shape, module.param_dtype)


def bias_of(module: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """Returns the parameter ``bias`` of ``module``, if any."""
    if not module.use_bias:
        return None
    return module.param("bias", module.bias_init, shape, module.param_dtype)


def devices_of(module: nn.Module, *more: str) -> dict[str, Any]:
    """Returns the device arguments, all None in ``init``, which may run outside the mapped axes."""
    names = ("axis_name", "axis_index_groups", *more)
    return {name: None if module.is_initializing() else getattr(module, name) for name in names}


class Checked(nn.Module):
    """A module that validates its numbers and flags when it is constructed."""

    def __post_init__(self) -> None:
        # Flax's first positional arguments are those of modules without positional fields: parent and name.
        if isinstance(self.parent, bool | int | float | str):
            raise TypeError(
                f"options of {type(self).__name__} must be given by keyword; got {self.parent!r} without one."
            )
        check_fields(own_fields(self))
        super().__post_init__()


def is_evaluating(module: Any, use_running_average: bool | None) -> bool:
    """Returns ``use_running_average`` from the module or from the call, whichever sets it.

    Raises:
        ValueError: If both set it, if neither does, or if the call's value is not a boolean.
    """
    check_flag("use_running_average", use_running_average)
    return nn.merge_param("use_running_average", module.use_running_average, use_running_average)


class RunningVariables:
    """The running statistics of ``module`` as variables in the collection ``batch_stats``."""

    def __init__(
        self, module: Any, x: jax.Array, shape: tuple[int, ...], *, evaluating: bool
    ) -> None:
        dtype = jnp.float32 if module.force_float32_reductions else module.param_dtype
        # Evaluation does not read the count, so a checkpoint may lack it.
        counting = module.momentum is None and (module.is_initializing() or not evaluating)
        names = ("mean", "var", "count") if counting else ("mean", "var")

        def fresh(name: str) -> jax.Array:
            stats = init_running_stats(shape, dtype_of_mean(x.dtype, dtype), cumulative=counting)
            return getattr(stats, name)

        self._keeping = module.is_initializing()
        self._variables = {
            name: module.variable("batch_stats", name, fresh, name) for name in names
        }

    def read(self) -> RunningStats:
        """Returns the current statistics."""
        return RunningStats(**{name: v.value for name, v in self._variables.items()})

    def write(self, updated: RunningStats) -> None:
        """Stores the statistics from a training step; does nothing in ``init``, which is not a step."""
        if not self._keeping:
            for name, variable in self._variables.items():
                variable.value = getattr(updated, name)
