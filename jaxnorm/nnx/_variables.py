"""Helpers for the NNX modules: creating, reading and writing variables."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.nnx.variablelib import is_array_ref
from flax.typing import PromoteDtypeFn
from jax.lax import stop_gradient
from jax.typing import DTypeLike

from ..core._precision import promoted_dtype
from ..core._running import RunningStats, init_running_stats
from ..core.calling._arguments import check_flag

Features = int | Sequence[int]

promote_dtype: PromoteDtypeFn = dtypes.promote_dtype
"""Flax's default. Modules that have it use the promotion rule of the `jaxnorm` functions instead."""


def shape_of(num_features: Features) -> tuple[int, ...]:
    """Returns the shape of a parameter: one size for each feature axis."""
    if isinstance(num_features, Sequence):
        return tuple(num_features)
    return (operator.index(num_features),)


def parameter(
    wanted: bool,
    init: nnx.Initializer,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    metadata: Mapping[str, Any] | None,
) -> Any:
    """Creates an `nnx.Param`, or returns None if ``wanted`` is False."""
    if not wanted:
        return nnx.data(None)
    return nnx.Param(init(rngs.params(), shape, dtype), **(metadata or {}))


def value_of(variable: nnx.Variable | None) -> Any:
    """Returns the value of a variable, or None if there is no variable."""
    return None if variable is None else variable[...]


def promoted(module: Any, x: jax.Array, *variables: str) -> tuple[Any, ...]:
    """Returns ``x`` and the named variables of ``module``, promoted by a non-default ``promote_dtype``."""
    values = x, *(value_of(getattr(module, name)) for name in variables)
    if module.promote_dtype is promote_dtype:
        return values
    return module.promote_dtype(values, dtype=module.dtype)


def is_evaluating(module: Any, use_running_average: bool | None) -> bool:
    """Returns ``use_running_average`` from the call or, if that is None, from the module.

    Raises:
        ValueError: If both are None, or if the call's value is not a boolean.
    """
    check_flag("use_running_average", use_running_average)
    asked = module.use_running_average if use_running_average is None else use_running_average
    if asked is None:
        raise ValueError(
            "use_running_average must be True (evaluation) or False (training) in the module or in the "
            "call; got None in both. Call module.train() or module.eval(), or pass it in the call."
        )
    return asked


def make_running_stats(module: Any, shape: tuple[int, ...], *, tracked: bool = True) -> None:
    """Creates ``mean``, ``var`` and, for ``momentum=None``, ``count``; all None if ``tracked`` is False."""
    is_complex = jnp.issubdtype(module.param_dtype, jnp.complexfloating)
    dtype = promoted_dtype(jnp.float32, module.param_dtype) if is_complex else jnp.float32
    fresh = init_running_stats(shape, dtype, cumulative=module.momentum is None)
    for name, value in fresh._asdict().items():
        wanted = tracked and value is not None
        setattr(module, name, nnx.BatchStat(value) if wanted else nnx.data(None))


def read_running_stats(module: Any) -> RunningStats:
    """Returns the current running statistics."""
    return RunningStats(*(value_of(getattr(module, name)) for name in RunningStats._fields))


def write_running_stats(module: Any, updated: RunningStats) -> None:
    """Stores the running statistics from a training step."""
    for name, value in updated._asdict().items():
        if value is not None:
            store(getattr(module, name), value)


def store(variable: nnx.Variable, value: jax.Array) -> None:
    """Sets the value of a variable.

    Array references cannot hold values under differentiation, so gradients are stopped for them.
    """
    variable[...] = stop_gradient(value) if is_array_ref(variable.get_raw_value()) else value
