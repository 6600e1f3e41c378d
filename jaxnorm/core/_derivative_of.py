"""Values that are known, with the derivative of how they would be computed."""

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
    """``known``, with the derivative of ``own``, summed over the devices along ``names``.

    The two are the same numbers, but for rounding.
    """
    if is_portable():
        return sum_over_devices(own, names)
    if not names:
        pairs = (_alike(o, k) for o, k in zip(own, known, strict=True))
        own, known = zip(*pairs, strict=True)
    return _with_derivative.bind(*own, *known, names=names)


def _alike(own: jax.Array, known: jax.Array) -> tuple[jax.Array, ...]:
    """Both of one shape, lying alike over the devices: a value is of the type of its derivative."""
    if jax.typeof(own) == jax.typeof(known):
        return own, known
    known = jnp.broadcast_to(known, own.shape)
    return match_sharding(match_varying((own, known)), own.shape)[0]


# A primitive, and not a custom derivative: vmap takes its name away where it batches, so that a derivative
# that is taken outside of vmap does not ask for it.
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
