"""1 / sqrt(a), with a derivative that takes one division."""

from typing import Any

import jax
import jax.numpy as jnp

from ._jax import Primitive, ad, batching, mlir
from ._portable import is_portable
from .lowering._lowering import runs_as


def inverse_root(a: jax.Array) -> jax.Array:
    """Returns 1 / sqrt(a).

    Its derivative multiplies by the result and divides by a, one after the other. The derivative of
    `lax.rsqrt` multiplies by a^(-3/2), which leaves the range of float32 long before a does. That of a
    division and a square root has two divisions more, and is less accurate. XLA:CPU compiles a program for
    each of them, and for a second square root.
    """
    return _formula(a) if is_portable() else _inverse_root.bind(a)


def _formula(a: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(a)


_inverse_root = Primitive("norm_inverse_root")


def _differentiate(primals: Any, tangents: Any) -> Any:
    root = _inverse_root.bind(*primals)
    return root, tangents[0] * -0.5 * root / primals[0]


runs_as(_inverse_root, _formula)
_inverse_root.def_abstract_eval(lambda a: a)
ad.primitive_jvps[_inverse_root] = _differentiate
batching.defvectorized(_inverse_root)
mlir.register_lowering(_inverse_root, mlir.lower_fun(_formula, False))
