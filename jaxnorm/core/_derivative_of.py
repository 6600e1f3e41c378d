"""Known values, differentiated as if they were computed in another way."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._all_reduce import sum_over_devices
from ._jax import Primitive, ad, batching, mlir
from ._placement import match_sharding, match_varying
from ._portable import is_portable


def with_derivative_of(
    known: Sequence[jax.Array], own: Sequence[jax.Array], names: tuple[str, ...] = ()
) -> list[jax.Array]:
    """Returns ``known`` with the derivative of ``own`` summed over the devices along ``names``.

    ``known`` must equal these sums up to rounding.
    """
    if is_portable():
        return sum_over_devices(own, names)
    if not names:
        pairs = (_alike(o, k) for o, k in zip(own, known, strict=True))
        own, known = zip(*pairs, strict=True)
    return _with_derivative.bind(*own, *known, names=names)


def _alike(own: jax.Array, known: jax.Array) -> tuple[jax.Array, ...]:
    """Gives both the same shape and sharding, because a value and its tangent have the same type."""
    if jax.typeof(own) == jax.typeof(known):
        return own, known
    known = jnp.broadcast_to(known, own.shape)
    return match_sharding(match_varying((own, known)), own.shape)[0]


# A primitive instead of a custom_jvp: its batching rule removes the axis name of vmap, so that a derivative
# taken outside of the vmap does not refer to that name.
_with_derivative = Primitive("norm_with_derivative")
_with_derivative.multiple_results = True


@_with_derivative.def_impl
@_with_derivative.def_abstract_eval
def _values(*values: Any, names: tuple[str, ...]) -> list[Any]:
    return list(values[len(values) // 2 :])


def _differentiate(primals: Any, tangents: Any, *, names: tuple[str, ...]) -> Any:
    own = [ad.instantiate_zeros(t) for t in tangents[: len(tangents) // 2]]
    return _with_derivative.bind(*primals, names=names), sum_over_devices(own, names)


def _batch(axis: Any, args: Any, dims: Any, *, names: tuple[str, ...]) -> Any:
    half = len(args) // 2
    if axis.name not in names and all(d is None for d in dims):
        return _with_derivative.bind(*args, names=names), [None] * half
    args = [batching.bdim_at_front(a, d, axis.size) for a, d in zip(args, dims, strict=True)]
    if axis.name not in names:
        return _with_derivative.bind(*args, names=names), [0] * half
    own, known = [a.sum(0) for a in args[:half]], [a[0] for a in args[half:]]
    return with_derivative_of(known, own, tuple(n for n in names if n != axis.name)), [None] * half


ad.primitive_jvps[_with_derivative] = _differentiate
batching.fancy_primitive_batchers[_with_derivative] = _batch
mlir.register_lowering(
    _with_derivative, lambda context, *values, names: _values(*values, names=names)
)
