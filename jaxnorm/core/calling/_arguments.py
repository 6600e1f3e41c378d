"""Checks of numbers and flags that users pass: one rule per argument name, for all functions and modules."""

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_F = TypeVar("_F", bound=Callable)


class Number(NamedTuple):
    """The rule for a real number. If a number is traced, its value is not checked."""

    must: str
    """What ``holds`` requires of the value, in words."""
    holds: Callable[[float], bool]
    advice: str
    advice_on_kind: str | None = None
    """The advice if the value is not a number."""
    or_none: bool = False

    def check(self, name: str, value: Any) -> None:
        """Checks ``value``, the argument called ``name``.

        Raises:
            ValueError: If it is not a real number, or does not satisfy ``holds``.
        """
        if value is None and self.or_none:
            return
        if not is_number(value) and not _is_traceable(value):
            kind = "one real number or None" if self.or_none else "one real number"
            advice = self.advice if self.advice_on_kind is None else self.advice_on_kind
            raise ValueError(f"{name} must be {kind}; got {value!r}. {advice}")
        holds = isinstance(value, Tracer) or self.holds(float(value))  # pyright: ignore[reportArgumentType]
        if not holds:
            raise ValueError(f"{name} must {self.must}; got {name}={value}. {self.advice}")


class Count(NamedTuple):
    """The rule for a static integer."""

    advice: str
    must: str = "an integer of 1 or more"
    least: float = 1
    or_none: bool = False

    def check(self, name: str, value: Any) -> None:
        """Checks ``value``, the argument called ``name``.

        Raises:
            ValueError: If it is not an integer, or is less than ``least``.
        """
        if value is None and self.or_none:
            return
        if not (is_integer(value) and value >= self.least):  # pyright: ignore[reportOptionalOperand]
            raise ValueError(f"{name} must be {self.must}; got {value!r}. {self.advice}")


def is_integer(value: Any) -> bool:
    """Returns whether ``value`` is a Python or NumPy integer, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether ``value`` is a real Python or NumPy number, and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_traceable(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray) or value.shape != ():
        return False
    return jnp.issubdtype(value.dtype, jnp.number) and not jnp.iscomplexobj(value)


EPSILON = Number(
    "be zero or positive",
    lambda v: v >= 0,
    "It is added to the variance so that a constant input divides by sqrt(epsilon): 1e-5 is usual.",
    advice_on_kind="The same number is added to the variance of every feature: 1e-5 is usual.",
)
MOMENTUM = Number(
    "lie in [0, 1]",
    lambda v: 0 <= v <= 1,
    "It is the weight of the old value: 0.99 moves slowly, and PyTorch's 0.1 is 0.9 here.",
    advice_on_kind="It is the weight of the old value, the same for every feature: 0.99 is usual.",
    or_none=True,
)
GROUPS = Count("Choose a divisor of the channels.", "an integer or None", -math.inf, or_none=True)
FINITE = Number("be finite", math.isfinite, "Check how it was computed.")
NUMBERS: Mapping[str, Number | Count] = {
    "epsilon": EPSILON,
    "momentum": MOMENTUM,
    "running_share": Number(
        "lie in [0, 1]", lambda v: 0 <= v <= 1, "1 is evaluation, 0 normalizes as in training."
    ),
    "rmax": Number("be 1 or more", lambda v: v >= 1, "rmax=1 with dmax=0 is batch norm."),
    "dmax": Number("be 0 or more", lambda v: v >= 0, "dmax=0 with rmax=1 is batch norm."),
    "max_abs": Number("be positive", lambda v: v > 0, "10 is usual.", or_none=True),
    "decay": Number(
        "lie in [0, 1]",
        lambda v: 0 <= v <= 1,
        "It is the weight of the old average: 0.999 moves slowly.",
    ),
    "scale_offset": FINITE,
    "multiplier": FINITE,
    "tolerance": Number("be zero or positive", lambda v: v >= 0, "1e-4 is usual."),
    "seed": Count("Any integer will do, such as 0.", "an integer", -math.inf),
    "virtual_batch_size": Count(
        "It is the number of examples that share statistics: 32 is usual.",
        "a positive integer or None",
        or_none=True,
    ),
    "num_groups": GROUPS,
    "group_size": GROUPS,
    "steps": Count("5 is usual; more steps are more accurate."),
    "num_key_heads": Count(
        "It is the number of heads of the keys: None if it is that of the queries.",
        "a positive integer or None",
        or_none=True,
    ),
    "warmup_steps": Count("0 is no warm-up.", "an integer of 0 or more", 0),
    "simplex_size": Count("It is the number of features that share a softmax: 8 is usual."),
    "features": Count("It is the number of channels."),
    "num_classes": Count("It is the number of rows in the tables of scales and biases."),
    "num_domains": Count("Each domain has its own statistics."),
    "condition_features": Count("It is the size of the condition's last axis."),
    "map_channels": Count("It is the size of the map's last axis."),
    "hidden": Count("It is the number of channels between the convolutions."),
    "kernel_size": Count("All convolutions of the layer use it."),
}
FLAGS = {
    *("unbiased", "unbiased_instances", "cumulative"),
    *("use_scale", "use_key_scale", "use_bias", "use_gain", "use_threshold", "use_shift"),
    *("norm_before_gate", "nonlinearity", "scale_after_cast", "track_running_stats"),
    *("use_fast_variance", "force_float32_reductions", "error_on_non_matrix"),
    *("has_aux", "partial", "affine", "layer_by_layer"),
}
FLAGS_OR_NONE = {"use_running_average", "update_stats", "progress"}


def check_flag(name: str, value: Any) -> None:
    """Checks the flag ``value``, the argument called ``name``.

    Raises:
        ValueError: If it is not True or False, or None where that is allowed.
    """
    if isinstance(value, bool | np.bool_) or (value is None and name in FLAGS_OR_NONE):
        return
    choices = "True, False or None" if name in FLAGS_OR_NONE else "True or False"
    advice = (
        "It decides what is compiled, so it cannot be traced: under jit, name it in static_argnames."
        if isinstance(value, Tracer)
        else "Convert other values with bool()."
    )
    raise ValueError(f"{name} must be {choices}; got {value!r}. {advice}")


def check_options(options: Mapping[str, Any]) -> None:
    """Checks each of ``options`` that has a rule.

    Raises:
        ValueError: If a number or a flag is invalid.
    """
    for name, value in options.items():
        if name in NUMBERS:
            NUMBERS[name].check(name, value)
        elif name in FLAGS or name in FLAGS_OR_NONE:
            check_flag(name, value)


def check_scalar(name: str, value: Any) -> None:
    """Checks a number that may be trainable: any array is accepted, whatever its value.

    Raises:
        ValueError: If it is neither an array nor a finite number.
    """
    if not hasattr(value, "dtype"):
        FINITE.check(name, value)


def own_fields(module: Any) -> dict[str, Any]:
    """The fields of a module that this package defines; those that a user's subclass adds have no rules."""
    return {name: getattr(module, name) for name in _own_names(type(module))}


@functools.cache
def _own_names(kind: type) -> tuple[str, ...]:
    package = __name__.partition(".")[0]
    ours = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == package]
    annotated = {name for base in ours for name in inspect.get_annotations(base)}
    return tuple(field.name for field in dataclasses.fields(kind) if field.name in annotated)


def own_arguments(module: Any, init: Callable[..., Any]) -> dict[str, Any]:
    """The attributes of a module that are named after an argument of ``init``, its class's constructor."""
    names = inspect.signature(init).parameters
    return {name: value for name, value in vars(module).items() if name in names}


def check_fields(fields: Mapping[str, Any]) -> None:
    """Runs `check_options` on a module's fields, except schedules, whose values are not known yet.

    Raises:
        ValueError: If a number or a flag is invalid.
    """
    later = {name for name in ("rmax", "dmax") if callable(fields.get(name))}
    check_options({name: value for name, value in fields.items() if name not in later})


def checked(f: _F) -> _F:
    """Wraps ``f`` to check its keyword arguments before anything is traced, while their values are known."""

    @functools.wraps(f)
    def checked_f(*args: Any, **options: Any) -> Any:
        check_options(options)
        return f(*args, **options)

    return checked_f  # type: ignore[return-value]
