"""The keys to the leaves of trees of variables, in the same form for Linen and NNX."""

from collections.abc import Sequence
from typing import Any

# Where NNX wrappers keep values for the parameters of their layer, and what Linen's call each value.
_OF_WRAPPERS = {"scales": "scale", "gains": "gain"}


def key_names(path: Sequence[Any]) -> tuple[str, ...]:
    """The keys to a leaf as JAX gives them, of dictionaries, fields and sequences alike."""
    keys = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
    if keys[-1:] == ["value"]:  # of an NNX variable
        del keys[-1]
    return tuple(map(str, split_keys(keys)))


def split_keys(keys: Sequence[Any]) -> tuple[Any, ...]:
    """The keys to a variable; those of an NNX wrapper in Linen's order.

    An NNX wrapper keeps values by the paths of parameters: ``("scales", ("kernel",))`` is the ``scale`` of
    its layer's ``kernel``.
    """
    *path, last = keys or (None,)
    if not isinstance(last, tuple):
        return tuple(keys)
    kept_as = _OF_WRAPPERS.get(str(path.pop()))
    return (*path, *last) if kept_as is None else (*path, *last, kept_as)
