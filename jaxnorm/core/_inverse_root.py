"""1 / sqrt(a), with a derivative that suits the platform."""

from typing import Any

import jax
import jax.numpy as jnp

from ._jax import Primitive, ad, mlir
from ._portable import is_portable
from .lowering._lowering import batches_in_front, runs_as


def inverse_root(a: jax.Array) -> jax.Array:
    """Returns 1 / sqrt(a).

    Its derivative multiplies by the result and divides by a, one after the other. The derivative of
    `lax.rsqrt` multiplies by a^(-3/2), which leaves the range of float32 long before a does. That of a
    division and a square root has two divisions more, and is less accurate. XLA:CPU compiles a program for
    each of them, and for a second square root.

    A GPU takes the latter all the same. With one division, XLA for a B200 finds it cheaper to store the
    exponential of a silu in float32 than to compute it again in the backward pass.
    """
    return _formula(a) if is_portable() else _inverse_root.bind(a)


def _formula(a: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(a)


def _derivative(along: jax.Array, root: jax.Array, a: jax.Array) -> jax.Array:
    return along * -0.5 * root / a


def _derivative_of_formula(along: jax.Array, root: jax.Array, a: jax.Array) -> jax.Array:
    return jax.jvp(_formula, (a,), (along,))[1]


_inverse_root = Primitive("norm_inverse_root")
_along = Primitive("norm_along_inverse_root")


def _differentiate(primals: Any, tangents: Any) -> Any:
    root = _inverse_root.bind(*primals)
    return root, _along.bind(*tangents, root, *primals)


def _differentiate_along(primals: Any, tangents: Any) -> Any:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return _along.bind(*primals), jax.jvp(_derivative, tuple(primals), tangents)[1]


def _transpose_along(cotangent: Any, _: Any, root: jax.Array, a: jax.Array) -> list[Any]:
    return [_along.bind(cotangent, root, a), None, None]


ad.primitive_jvps[_inverse_root] = _differentiate
ad.primitive_jvps[_along] = _differentiate_along
ad.primitive_transposes[_along] = _transpose_along
for _primitive, _plain in ((_inverse_root, _formula), (_along, _derivative)):
    runs_as(_primitive, _plain)
    batches_in_front(_primitive)
    _primitive.def_abstract_eval(lambda a, *_: a)
    mlir.register_lowering(_primitive, mlir.lower_fun(_plain, False))
for _platform in ("cuda", "rocm"):
    mlir.register_lowering(
        _along, mlir.lower_fun(_derivative_of_formula, False), platform=_platform
    )
