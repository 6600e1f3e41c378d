"""Which platform a program is compiled for, as a value in the program."""

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Primitive, mlir
from ._lowering import runs_as


def compiled_for(platform: str) -> jax.Array:
    """Returns whether the program is compiled for ``platform``.

    XLA decides a select by this constant, and compiles only what the select returns. What depends on a zero
    from a select stays, except for sums and products of constants. This is for two ways to write the same few
    equations. Anything longer belongs in a lowering rule.
    """
    return _compiled_for.bind(platform=platform)


_compiled_for = Primitive("norm_compiled_for")
_compiled_for.def_abstract_eval(lambda *, platform: jax.typeof(np.zeros((), bool)))
runs_as(_compiled_for, lambda *, platform: jnp.zeros((), bool), "platform")
for _own in (None, "cpu", "tpu", "cuda", "rocm"):
    mlir.register_lowering(
        _compiled_for,
        lambda context, *, platform, own=_own: [mlir.ir_constant(np.bool_(own == platform))],
        platform=_own,
    )
