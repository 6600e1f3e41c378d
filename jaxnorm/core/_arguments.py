"""Numbers and flags that users hand in: what each of a name must be, whatever function or module it is of."""

import functools
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
    """A real number, which may be traced: then its value is not known."""

    must: str
    """In words, what ``holds`` says of its value."""
    holds: Callable[[float], bool]
    advice: str
    advice_on_kind: str | None = None
    """Where it is no number at all."""
    or_none: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises what is wrong with it.

        Raises:
            ValueError: it is no number, or not such a one.
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
    """An integer, which is never traced."""

    advice: str
    must: str = "an integer of 1 or more"
    least: float = 1
    or_none: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises what is wrong with it.

        Raises:
            ValueError: it is no integer, or too small.
        """
        if value is None and self.or_none:
            return
        if not (is_integer(value) and value >= self.least):  # pyright: ignore[reportOptionalOperand]
            raise ValueError(f"{name} must be {self.must}; got {value!r}. {self.advice}")


def is_integer(value: Any) -> bool:
    """Whether it is one of Python or NumPy, and no flag."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real one of Python or NumPy, and no flag."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_traceable(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray) or value.shape != ():
        return False
    return jnp.issubdtype(value.dtype, jnp.number) and not jnp.iscomplexobj(value)


EPSILON = Number(
    "be zero or positive",
    lambda v: v >= 0,
    "It is added to the variance so that a constant input divides by sqrt(epsilon): 1e-5 is usual.",
    advice_on_kind="It is added to the variance of every feature alike: 1e-5 is usual.",
)
MOMENTUM = Number(
    "lie in [0, 1]",
    lambda v: 0 <= v <= 1,
    "It is the weight of the old value: 0.99 moves slowly, and PyTorch's 0.1 is 0.9 here.",
    advice_on_kind="It is the weight of the old value of every feature alike: 0.99 is usual.",
    or_none=True,
)
GROUPS = Count("Choose a divisor of the channels.", "an integer or None", -math.inf, or_none=True)
FINITE = Number("be finite", math.isfinite, "Look for where it comes from.")
NUMBERS: Mapping[str, Number | Count] = {
    "epsilon": EPSILON,
    "momentum": MOMENTUM,
    "running_share": Number(
        "lie in [0, 1]", lambda v: 0 <= v <= 1, "1 is evaluation, 0 as in training."
    ),
    "rmax": Number("be 1 or more", lambda v: v >= 1, "At 1 it is batch norm."),
    "dmax": Number("be 0 or more", lambda v: v >= 0, "At 0 it is batch norm."),
    "decay": Number(
        "lie in [0, 1]",
        lambda v: 0 <= v <= 1,
        "It is the weight of the old average: 0.999 follows slowly.",
    ),
    "scale_offset": FINITE,
    "tolerance": Number("be zero or positive", lambda v: v >= 0, "1e-4 is usual."),
    "seed": Count("0 is as good as any.", "an integer", -math.inf),
    "virtual_batch_size": Count(
        "It is the number of examples that share statistics: 32 is usual.",
        "a positive integer or None",
        or_none=True,
    ),
    "steps": Count("5 come near, more come nearer."),
    "features": Count("It is the number of channels."),
    "num_classes": Count("It is the number of rows of the tables."),
    "num_domains": Count("Each has statistics of its own."),
    "condition_features": Count("It is the size of the condition's last axis."),
    "map_channels": Count("It is the size of the map's last axis."),
    "hidden": Count("It is the number of channels between the convolutions."),
    "kernel_size": Count("It is that of all convolutions of the layer."),
}
FLAGS = {
    *("training", "unbiased", "cumulative"),
    *("use_scale", "use_bias", "use_gain", "use_threshold", "track_running_stats"),
    *("use_fast_variance", "force_float32_reductions", "error_on_non_matrix"),
    *("has_aux", "partial", "affine", "layer_by_layer", "progress"),
}
FLAGS_OR_NONE = {"use_running_average", "update_stats"}


def check_flag(name: str, value: Any) -> None:
    """Raises what is wrong with it.

    Raises:
        ValueError: it is neither True nor False; nor None, where that is a choice.
    """
    if isinstance(value, bool | np.bool_) or (value is None and name in FLAGS_OR_NONE):
        return
    choices = "True, False or None" if name in FLAGS_OR_NONE else "True or False"
    raise ValueError(
        f"{name} must be {choices}; got {value!r}. It decides what is compiled, and so cannot be traced: "
        f"under jit, name it in static_argnames."
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Raises what is wrong with any of ``options``, of those that have a rule.

    Raises:
        ValueError: a number or a flag cannot be.
    """
    for name, value in options.items():
        if name in NUMBERS:
            NUMBERS[name].check(name, value)
        elif name in FLAGS or name in FLAGS_OR_NONE:
            check_flag(name, value)


def check_scalar(name: str, value: Any) -> None:
    """Raises what is wrong with a number that may be trained: then it is an array, whatever its value."""
    if not hasattr(value, "dtype"):
        FINITE.check(name, value)


def check_fields(fields: Mapping[str, Any]) -> None:
    """`check_options` of a module, but of schedules, which say their numbers later.

    Raises:
        ValueError: a number or a flag cannot be.
    """
    later = {name for name in ("rmax", "dmax") if callable(fields.get(name))}
    check_options({name: value for name, value in fields.items() if name not in later})


def checked(f: _F) -> _F:
    """``f``, whose keyword arguments are looked at before anything is traced: so values are known."""

    @functools.wraps(f)
    def checked_f(*args: Any, **options: Any) -> Any:
        check_options(options)
        return f(*args, **options)

    return checked_f  # type: ignore[return-value]
