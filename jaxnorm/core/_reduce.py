"""Elementwise functions, mapped or summed: everything that reads or writes the activation is one of these.

    map_elementwise(f, *operands)           f of the operands, broadcast together
    sum_elementwise(f, *operands; axes)     the same, summed over ``axes``, which keep size 1

Both are one primitive, so that the compiler sees what a norm means: several sums in one pass over the
activation, of values that are never stored. The primitive is closed under differentiation. Its derivative is
the derivative of f, mapped or summed in the same way. If it is linear in an operand, its transpose is the
transpose of f, summed over the axes along which the operand was broadcast. So the gradient of a norm reads
and writes the activation as often as a gradient written by hand, and everything else (forward mode, higher
orders, batching, device axes) follows from these few rules.

How best to compute the sums depends on the platform. That choice is made in the lowering rules at the end,
and nowhere else.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ._axes import is_static
from ._elementwise import (
    Elementwise,
    cotangent_of,
    merge,
    partition,
    read_by,
    result_dtypes,
    shares_work,
    some_of,
    tangent_of,
    without_dead_code,
    without_unread,
)
from ._jax import Primitive, ad, batching, mlir
from ._placement import match_sharding, match_varying
from ._portable import is_portable
from .lowering._cpu_hints import materialize
from .lowering._cpu_sums import Shape, sums_on_cpu
from .lowering._lowering import is_partitioned, lowered_by, runs_as


def sum_elementwise(f: Elementwise, *operands: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    """Returns the results of ``f``, summed over ``axes``. Operands have the same rank and are broadcast."""
    shape = jnp.broadcast_shapes(*(a.shape for a in operands))
    operands, partitions = match_sharding(match_varying(operands), shape)
    sum_of = _plain if is_portable() else _map_sum.bind
    return sum_of(*operands, f=f, axes=axes, shape=shape, partitions=partitions)


def map_elementwise(f: Elementwise, *operands: jax.Array) -> list[jax.Array]:
    """Returns the results of ``f``. Operands have the same rank and are broadcast."""
    return sum_elementwise(f, *operands, axes=())


# --- the primitive -------------------------------------------------------------------------------

_map_sum = Primitive("norm_map_sum")
_map_sum.multiple_results = True


@_map_sum.def_abstract_eval
def _(
    *avals: Any, f: Elementwise, axes: tuple[int, ...], shape: Shape, partitions: tuple[Any, ...]
) -> list[Any]:
    sizes = tuple(1 if i in axes else n for i, n in enumerate(shape))
    spec = PartitionSpec(*(None if i in axes else p for i, p in enumerate(partitions)))
    like, sharding = avals[0], avals[0].sharding.update(spec=spec)
    return [
        like.update(shape=sizes, dtype=dtype, sharding=sharding, weak_type=False)
        for dtype in result_dtypes(f, tuple(aval.dtype for aval in avals))
    ]


def _differentiate(primals: Any, tangents: Any, *, f: Elementwise, **params: Any) -> Any:
    moves = tuple(not _is_zero(t) for t in tangents)
    along, _ = partition(tangents, moves)
    derivative = _bind_read(tangent_of(f, moves), *primals, *along, **params)
    return _map_sum.bind(*primals, f=f, **params), derivative


def _transpose(
    cotangents: Any,
    *operands: Any,
    f: Elementwise,
    axes: tuple[int, ...],
    shape: Shape,
    **params: Any,
) -> list[Any]:
    linear = tuple(ad.is_undefined_primal(a) for a in operands)
    given = tuple(not _is_zero(ct) for ct in cotangents)
    wanted, others = partition(operands, linear)
    of_results, _ = partition(cotangents, given)
    arrays = (*others, *(map(materialize, of_results) if axes else of_results))
    back = cotangent_of(f, linear, given, tuple(a.aval.dtype for a in wanted))
    repeated = [tuple(i for i, n in enumerate(shape) if a.aval.shape[i] == 1 != n) for a in wanted]
    results: dict[int, jax.Array] = {}
    for along in dict.fromkeys(repeated):  # one pass for all operands broadcast along the same axes
        which = tuple(i for i, axes in enumerate(repeated) if axes == along)
        if along:  # in sequence, so that their partial sums are not alive at once
            arrays = [a if a.shape == shape else _after_one_of(results.values(), a) for a in arrays]
        sums = _bind_read(some_of(back, which), *arrays, axes=along, shape=shape, **params)
        results |= zip(which, sums, strict=True)
    in_order = [results[i] for i in range(len(wanted))]
    return merge(in_order, [None] * len(others), linear)


def _after_one_of(others: Iterable[jax.Array], a: jax.Array) -> jax.Array:
    """Returns ``a``, computed after one of the ``others`` of the same type, if there is one."""
    alike = (b for b in others if jax.typeof(b) == jax.typeof(a))
    return next((materialize(a, b) for b in alike), a)


def _batch(
    args: Any, dims: Any, *, axes: tuple[int, ...], shape: Shape, partitions: Any, f: Elementwise
) -> Any:
    size, partition = next(
        (a.shape[d], jax.typeof(a).sharding.spec[d])
        for a, d in zip(args, dims, strict=True)
        if d is not None
    )
    args = [
        a[None] if d is None else batching.bdim_at_front(a, d, size)
        for a, d in zip(args, dims, strict=True)
    ]
    results = _map_sum.bind(
        *args,
        f=f,
        axes=tuple(i + 1 for i in axes),
        shape=(size, *shape),
        partitions=(partition, *partitions),
    )
    return results, [0] * len(results)


def _bind_read(f: Elementwise, *operands: jax.Array, **params: Any) -> list[jax.Array]:
    """Binds the primitive to the operands that ``f`` reads: the others need not be saved or computed."""
    dtypes = tuple(jax.typeof(a).dtype for a in operands)
    read = read_by(f, dtypes)
    return _map_sum.bind(*partition(operands, read)[0], f=without_unread(f, read, dtypes), **params)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero) or tangent.dtype == jax.dtypes.float0


ad.primitive_jvps[_map_sum] = _differentiate
ad.primitive_transposes[_map_sum] = _transpose
batching.primitive_batchers[_map_sum] = _batch


# --- the lowering rules ---------------------------------------------------------------------------


def _plain(
    *operands: jax.Array, f: Elementwise, axes: tuple[int, ...], shape: Shape, partitions: Any
) -> list[jax.Array]:
    results = f(*(_repeated(a, shape, partitions) for a in operands))
    return [r.sum(axes, keepdims=True) if axes else r for r in results]


def _repeated(a: jax.Array, shape: Shape, partitions: tuple[Any, ...]) -> jax.Array:
    if a.shape == shape:
        return a
    sharding = None
    if any(p is not None for p in partitions):
        sharding = NamedSharding(jax.typeof(a).sharding.mesh, PartitionSpec(*partitions))
    return lax.broadcast_in_dim(a, shape, tuple(range(a.ndim)), out_sharding=sharding)


def _in_one_reduction(
    *operands: jax.Array, f: Elementwise, axes: tuple[int, ...], shape: Shape
) -> list[jax.Array]:
    """Takes all sums in one reduction: XLA:GPU reads the operands once and adds the parts in one kernel."""
    results = f(*(_repeated(a, shape, (None,) * len(shape)) for a in operands))
    zeros = tuple(jnp.zeros((), r.dtype) for r in results)
    sums = lax.reduce(tuple(results), zeros, lambda a, b: tuple(map(jnp.add, a, b)), axes)
    return [jnp.expand_dims(s, axes) for s in sums]


def _as_complex_sum(
    *operands: jax.Array, f: Elementwise, axes: tuple[int, ...], shape: Shape
) -> list[jax.Array]:
    """Takes two real sums as one complex sum.

    If a reduction has two operands, XLA:GPU stores what both are computed from: the backward pass of silu
    wrote and read dy times the derivative in float32.
    """
    results = f(*(_repeated(a, shape, (None,) * len(shape)) for a in operands))
    total = lax.complex(*results).sum(axes, keepdims=True)
    return [lax.real(total), lax.imag(total)]


# XLA cannot partition the reductions for a CPU or a GPU: it may gather their operands. So a program that XLA
# partitions uses `_plain`.


def _lower_on_cpu(context: Any, *operands: Any, axes: Any, shape: Shape, **params: Any) -> Any:
    is_sum = is_static(shape) and any(shape[i] > 1 for i in axes) and 0 not in shape
    compute = sums_on_cpu if is_sum and not is_partitioned(context) else None
    return _lower(compute, context, *operands, axes=axes, shape=shape, **params)


def _lower_on_gpu(context: Any, *operands: Any, f: Any, axes: Any, **params: Any) -> Any:
    compute = None
    if len(context.avals_out) > 1 and len(axes) > 0 and not is_partitioned(context):
        as_one = _is_best_as_complex(context.avals_in, context.avals_out, f, axes)
        compute = _as_complex_sum if as_one else _in_one_reduction
    return _lower(compute, context, *operands, f=f, axes=axes, **params)


def _is_best_as_complex(
    operands: Sequence[Any], results: Sequence[Any], f: Elementwise, axes: tuple[int, ...]
) -> bool:
    kind, *others = [result.dtype for result in results]
    along_rows = results[0].ndim - 1 in axes  # where layer norm would not be one kernel any more
    if along_rows or others != [kind] or kind not in (jnp.float32, jnp.float64):
        return False
    return shares_work(f, tuple(operand.dtype for operand in operands))


def _lower(
    compute: Any, context: Any, *operands: Any, f: Elementwise, partitions: Any, **params: Any
) -> Any:
    """Lowers the primitive by ``compute``, or by `_plain` if that is None."""
    if compute is None:
        compute, params = _plain, {**params, "partitions": partitions}
    f = without_dead_code(f, tuple(aval.dtype for aval in context.avals_in))
    return lowered_by(compute, f=f, **params)(context, *operands)


runs_as(_map_sum, _plain, "f", "axes", "shape", "partitions")
mlir.register_lowering(_map_sum, functools.partial(_lower, None))
mlir.register_lowering(_map_sum, _lower_on_cpu, platform="cpu")
for _platform in ("cuda", "rocm"):
    mlir.register_lowering(_map_sum, _lower_on_gpu, platform=_platform)
