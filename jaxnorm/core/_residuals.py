"""What a norm remembers for its backward pass: x in its own dtype, and the sums that were taken of it.

Everything else (x - mean, its square, the float32 copy of a bfloat16 input) is cheaper to compute
again than to store and read.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ._cpu_hints import read_apart
from ._elementwise import divide, merge

_F = TypeVar("_F", bound=Callable)
_SUMS = "jaxnorm_sums"


def keep(sums: jax.Array) -> jax.Array:
    """Marks sums over the activation: small, and a whole pass over it to compute again."""
    if jnp.iscomplexobj(sums):  # a name is for reals
        return lax.complex(checkpoint_name(sums.real, _SUMS), checkpoint_name(sums.imag, _SUMS))
    return checkpoint_name(sums, _SUMS)


def underived(value: jax.Array) -> jax.Array:
    """``value`` without its derivative, for state that takes none."""
    return lax.stop_gradient(value)


def lean(norm: _F) -> _F:
    """``norm``, saving nothing for the backward pass but its arrays and what is marked with `keep`."""
    policy = jax.checkpoint_policies.save_only_these_names(_SUMS)

    @functools.wraps(norm)
    def lean_norm(*args: Any, **options: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, options))
        which = tuple(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        arrays, others = divide(leaves, which)

        def of_arrays(*arrays: jax.Array) -> Any:
            arrays = tuple(map(read_apart, arrays))
            args, options = jax.tree.unflatten(tree, merge(arrays, others, which))
            return norm(*args, **options)

        # No barrier: it would also hold the cotangent back, which a compiler is to make in the same loop.
        return jax.checkpoint(of_arrays, policy=policy, prevent_cse=False)(*arrays)

    return lean_norm  # type: ignore[return-value]
