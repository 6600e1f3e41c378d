"""Selects layers by their paths."""

import fnmatch
from collections.abc import Callable
from typing import TypeAlias

Where: TypeAlias = str | Callable[[str], bool]
"""Selects layers: a pattern of paths, like file names (``"stem/*"``), or a function of the path."""


def matches(where: Where | None, path: str) -> bool:
    """Whether ``where`` selects the layer at ``path``; None selects all."""
    if where is None:
        return True
    return where(path) if callable(where) else fnmatch.fnmatchcase(path, where)


def select(where: Where | None, paths: list[str], kind: str) -> list[str]:
    """The ``paths`` that ``where`` selects.

    Raises:
        ValueError: If ``paths`` is empty, or ``where`` matches none of them.
    """
    if not paths:
        raise ValueError(
            f"there must be at least one {kind}; got a model without any. Linen layers are found through the "
            f"variables: pass the collections params and batch_stats as returned by init or training."
        )
    meant = [path for path in paths if matches(where, path)]
    if not meant:
        found = ", ".join(path or "'' (the model itself)" for path in paths)
        raise ValueError(
            f"where must match at least one {kind} in the model; got where={where!r}, but the model has: "
            f"{found}. Use a pattern such as 'stem/*', or omit where to select all."
        )
    return meant
