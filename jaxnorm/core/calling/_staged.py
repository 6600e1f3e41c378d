"""Functions that are traced once for each combination of options, shapes and dtypes."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from ._calls import StaticPart, split_call

_F = TypeVar("_F", bound=Callable)
_STRUCTURE = {"reduction_axes", "feature_axes", "axis_index_groups"}


def staged(norm: _F) -> _F:
    """Wraps ``norm`` to be traced once for layers that are alike, and to run eagerly as one program.

    Inside another program it is inlined, as if it were not staged.
    """

    @functools.wraps(norm)
    def staged_norm(*args: Any, **options: Any) -> Any:
        for name in _STRUCTURE & options.keys():  # make arrays hashable
            if isinstance(options[name], np.ndarray):
                options[name] = options[name].tolist()
        known, arrays = split_call(args, options)
        try:  # the types matter: 1, 1.0 and True are equal, but different options
            program = _program(norm, known, tuple(map(type, known.others)))
        except TypeError:  # an option that is not hashable, such as a set of axes
            return norm(*args, **options)
        return program(*arrays)

    return staged_norm  # type: ignore[return-value]


@functools.lru_cache(4096)
def _program(norm: Callable[..., Any], known: StaticPart, types: tuple[type, ...]) -> Any:
    return jax.jit(lambda *arrays: known.call(norm, arrays), inline=True)
