"""Values that are known, with the derivative of how they would be computed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._all_reduce import sum_over_devices
from ._jax import Primitive, ad, batching, mlir
from ._placement import equally_partitioned, equally_varying
from ._portable import is_portable


def as_known(
    own: Sequence[jax.Array], known: Sequence[jax.Array], names: tuple[str, ...] = ()
) -> list[jax.Array]:
    """``known``, with the derivative of ``own``, summed over the devices along ``names``.

    The two are the same numbers, but for rounding.
    """
    if is_portable():
        return sum_over_devices(own, names)
    if not names:
        pairs = (_alike(o, k) for o, k in zip(own, known, strict=True))
        own, known = zip(*pairs, strict=True)
    return _known.bind(*own, *known, names=names)


def _alike(own: jax.Array, known: jax.Array) -> tuple[jax.Array, ...]:
    """Both of one shape, lying alike over the devices: a value is of the type of its derivative."""
    if jax.typeof(own) == jax.typeof(known):
        return own, known
    known = jnp.broadcast_to(known, own.shape)
    return equally_partitioned(equally_varying((own, known)), own.shape)[0]


# A primitive, and not a custom derivative: vmap takes its name away where it batches, so that a derivative
# that is taken outside of vmap does not ask for it.
_known = Primitive("norm_known")
_known.multiple_results = True


@_known.def_impl
@_known.def_abstract_eval
def _the_known(*values: Any, names: tuple[str, ...]) -> list[Any]:
    return list(values[len(values) // 2 :])


def _differentiate(primals: Any, tangents: Any, *, names: tuple[str, ...]) -> Any:
    own = [ad.instantiate_zeros(t) for t in tangents[: len(tangents) // 2]]
    return _known.bind(*primals, names=names), sum_over_devices(own, names)


def _batch(axis: Any, args: Any, dims: Any, *, names: tuple[str, ...]) -> Any:
    half = len(args) // 2
    if axis.name not in names and all(d is None for d in dims):
        return _known.bind(*args, names=names), [None] * half
    args = [batching.bdim_at_front(a, d, axis.size) for a, d in zip(args, dims, strict=True)]
    if axis.name not in names:
        return _known.bind(*args, names=names), [0] * half
    own, known = [a.sum(0) for a in args[:half]], [a[0] for a in args[half:]]
    return as_known(own, known, tuple(n for n in names if n != axis.name)), [None] * half


ad.primitive_jvps[_known] = _differentiate
batching.fancy_primitive_batchers[_known] = _batch
mlir.register_lowering(_known, lambda context, *values, names: _the_known(*values, names=names))
