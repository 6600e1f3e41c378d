"""Which platform a program is compiled for, as a value in the program."""

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Primitive, mlir
from ._lowering import runs_as


def compiled_for(*platforms: str) -> jax.Array:
    """Returns whether the program is compiled for one of the ``platforms``.

    XLA decides a select by this constant before anything else, so it compiles only what the select returns.
    This is for two ways to write the same few equations. Anything longer belongs in a lowering rule.
    """
    return _compiled_for.bind(platforms=platforms)


_compiled_for = Primitive("norm_compiled_for")
_compiled_for.def_abstract_eval(lambda *, platforms: jax.typeof(np.zeros((), bool)))
runs_as(_compiled_for, lambda *, platforms: jnp.zeros((), bool), "platforms")
for _platform in (None, "cpu", "tpu", "cuda", "rocm"):
    mlir.register_lowering(
        _compiled_for,
        lambda context, *, platforms, own=_platform: [mlir.ir_constant(np.bool_(own in platforms))],
        platform=_platform,
    )
