"""The residuals that a norm saves for its backward pass: x in its own dtype, and the sums over it.

Everything else (x - mean, its square, the float32 copy of a bfloat16 input) is cheaper to recompute than to
store and read.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._elementwise import merge, partition
from ._jax import SymbolicZero, checkpoint_name
from ._portable import is_portable, portable
from .calling._calls import split_call
from .lowering._cpu_hints import read_separately

_F = TypeVar("_F", bound=Callable)
_SUMS = "jaxnorm_sums"


def saveable(sums: jax.Array) -> jax.Array:
    """Marks sums over the activation to be saved: they are small, but take a whole pass to recompute."""
    if is_portable():
        return sums
    if jnp.iscomplexobj(sums):  # only real arrays are named
        return lax.complex(checkpoint_name(sums.real, _SUMS), checkpoint_name(sums.imag, _SUMS))
    return checkpoint_name(sums, _SUMS)


def rematerialized(norm: _F) -> _F:
    """Wraps ``norm`` to save only its array arguments and what `saveable` marks for the backward pass."""
    policy = jax.checkpoint_policies.save_only_these_names(_SUMS)

    @functools.wraps(norm)
    def rematerialized_norm(*args: Any, **options: Any) -> Any:
        if is_portable():
            return norm(*args, **options)
        known, arrays = split_call(args, options)
        rest = []

        def of_arrays(*arrays: jax.Array) -> Any:
            apart = [read_separately(a) if a.shape == arrays[0].shape else a for a in arrays]
            results, tree = jax.tree.flatten(known.call(norm, apart))
            # NumPy arrays are static, and stay NumPy arrays.
            are_traced = tuple(not isinstance(r, np.ndarray) for r in results)
            traced, others = partition(results, are_traced)
            rest[:] = tree, are_traced, others
            return traced

        # prevent_cse would add a barrier, which also keeps the cotangent from being made in the same loop.
        traced = jax.checkpoint(of_arrays, policy=policy, prevent_cse=False)(*arrays)
        tree, are_traced, others = rest
        return jax.tree.unflatten(tree, merge(traced, others, are_traced))

    return rematerialized_norm  # type: ignore[return-value]


def rematerialized_if_differentiated(norm: _F) -> _F:
    """Wraps ``norm`` to be `rematerialized` when it is differentiated, and `portable` otherwise.

    This is for norms without sums over x or over devices: jax's own primitives are as fast for them.
    """
    recomputing = rematerialized(norm)

    @functools.wraps(norm)
    def either(*args: Any, **options: Any) -> Any:
        if is_portable():
            return norm(*args, **options)
        known, arrays = split_call(args, options)

        @jax.custom_jvp
        def written_out(*arrays: jax.Array) -> Any:
            with portable():
                return known.call(norm, arrays)

        def differentiate(primals: Any, tangents: Any) -> Any:
            moves = tuple(not isinstance(t, SymbolicZero) for t in tangents)
            at, still = partition(primals, moves)
            along, _ = partition(tangents, moves)
            return jax.jvp(lambda *a: known.call(recomputing, merge(a, still, moves)), at, along)

        written_out.defjvp(differentiate, symbolic_zeros=True)
        return written_out(*arrays)

    return either  # type: ignore[return-value]
