"""A norm chosen by name, and the flag that all of them take."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from ..core._arguments import check_flag

_T = TypeVar("_T")


def choose(
    constructors: Mapping[str, Callable[..., _T]], name: str, **options: Any
) -> Callable[..., _T]:
    """The constructor of that ``name``, with ``options`` filled in.

    Raises:
        ValueError: there is no such name.
        TypeError: it has no such option.
    """
    if name not in constructors:
        raise ValueError(f"norm must be one of {', '.join(constructors)}; got {name!r}.")
    constructor = constructors[name]
    # A typo is an error here, not where the model is built.
    inspect.signature(constructor.__init__).bind_partial(None, **options)
    return partial(constructor, **options)


def taken_by(layer: object) -> set[str]:
    """The names of the arguments that ``layer`` is declared to take in a call."""
    return set(inspect.signature(inspect.unwrap(type(layer).__call__)).parameters)


def flags_for(layer: object, use_running_average: bool | None) -> dict[str, bool]:
    """The keyword argument to call ``layer`` with, if it takes one: wrappers hand the flag on."""
    if use_running_average is None or "use_running_average" not in taken_by(layer):
        return {}
    return {"use_running_average": use_running_average}


def is_updating(update_stats: bool | None, use_running_average: bool | None) -> bool:
    """Whether spectral norm stores its new state: it has a flag of its own, and the one of all norms.

    Raises:
        ValueError: neither is given, or one is no flag.
    """
    check_flag("update_stats", update_stats)
    check_flag("use_running_average", use_running_average)
    if update_stats is not None:
        return update_stats
    if use_running_average is None:
        raise ValueError(
            "update_stats must be True (training) or False (evaluation); got None, and None for "
            "use_running_average, which says the same the other way round. Pass one of them."
        )
    return not use_running_average
