"""The arguments by which a layer is told whether it trains."""

import functools
import inspect

from ...core.calling._arguments import check_flag


@functools.cache
def signature_of_call(kind: type) -> inspect.Signature:
    """Returns the signature of a class's ``__call__`` method, under its decorators."""
    return inspect.signature(inspect.unwrap(kind.__call__))


def taken_by(layer: object) -> set[str]:
    """Returns the argument names of the ``__call__`` method of ``layer``."""
    return set(signature_of_call(type(layer)).parameters)


def flags_for(layer: object, use_running_average: bool | None) -> dict[str, bool]:
    """Returns ``use_running_average`` as a keyword argument if ``layer`` takes it; wrappers pass it on."""
    if use_running_average is None or "use_running_average" not in taken_by(layer):
        return {}
    return {"use_running_average": use_running_average}


def is_updating(update_stats: bool | None, use_running_average: bool | None) -> bool:
    """Whether spectral norm stores its new state, given its own flag or the flag that all norms share.

    Raises:
        ValueError: If neither flag is given, or if one is not a bool.
    """
    check_flag("update_stats", update_stats)
    check_flag("use_running_average", use_running_average)
    if update_stats is not None:
        return update_stats
    if use_running_average is None:
        raise ValueError(
            "update_stats must be True (training) or False (evaluation); got None for it and for "
            "use_running_average, its opposite. Pass one of them."
        )
    return not use_running_average
