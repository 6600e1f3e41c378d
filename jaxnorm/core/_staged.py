"""Functions that are traced once for the same options, shapes and dtypes."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from ._elementwise import Which, divide, merge

_F = TypeVar("_F", bound=Callable)
_STRUCTURE = {"reduction_axes", "feature_axes", "axis_index_groups"}


def staged(norm: _F) -> _F:
    """``norm``, called eagerly as one program, and traced once for layers that are alike.

    Within a program it is written out, as if it were not staged.
    """

    @functools.wraps(norm)
    def staged_norm(*args: Any, **options: Any) -> Any:
        for name in _STRUCTURE & options.keys():  # numbers, whatever they are kept in
            if isinstance(options[name], np.ndarray):
                options[name] = options[name].tolist()
        leaves, tree = jax.tree.flatten((args, options))
        which = tuple(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        arrays, others = divide(leaves, which)
        try:
            # 1, 1.0 and True are equal, and not the same option.
            program = _program(norm, tree, which, tuple((type(a), a) for a in others))
        except TypeError:  # an option that cannot be kept, such as an initializer that has no hash
            return norm(*args, **options)
        return program(*arrays)

    return staged_norm  # type: ignore[return-value]


@functools.lru_cache(4096)
def _program(
    norm: Callable[..., Any], tree: Any, which: Which, others: tuple[tuple[type, Any], ...]
) -> Any:
    values = tuple(value for _, value in others)

    def of_arrays(*arrays: jax.Array) -> Any:
        args, options = jax.tree.unflatten(tree, merge(arrays, values, which))
        return norm(*args, **options)

    return jax.jit(of_arrays, inline=True)
