"""Collect and spread: the two linear maps that touch the activation, each the transpose of the other.

    collect(a, b; axes)        (Σa, Σb)    sums over ``axes``, which stay with size 1
    spread(s, t; axes, like)   (s, t) repeated along ``axes`` to the sizes they have in ``like``

They are primitives, because a compiler should see what a norm means: several sums over one pass of the
activation. Being linear, each is its own derivative, and since either one transposes to the other, the
gradient of a norm reads and writes the activation as often as a gradient written by hand. Everything
else (forward mode, higher orders, batching, device axes) follows from these few rules.

How the sums are best computed depends on the platform. That choice is `_sums_on_cpu` and nothing else.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

Axes = tuple[int, ...]


def collect(*arrays: jax.Array, axes: Axes) -> list[jax.Array]:
    """Sums of ``arrays`` (all of one shape) over ``axes``, which stay with size 1."""
    if not axes:
        return list(arrays)
    return _collect.bind(*arrays, axes=axes)


def spread(*arrays: jax.Array, axes: Axes, like: jax.Array) -> list[jax.Array]:
    """``arrays`` (size 1 along ``axes``) repeated along ``axes`` to the sizes that ``like`` has there."""
    if not axes:
        return list(arrays)
    sizes, partitions = _extent(jax.typeof(like), axes)
    arrays = tuple(_varying_as(a, like) for a in arrays)
    return _spread.bind(*arrays, axes=axes, sizes=sizes, partitions=partitions)


def _varying_as(a: jax.Array, like: jax.Array) -> jax.Array:
    """``a`` as varying over the devices that ``like`` varies over, under shard_map.

    Said of the small array, so that the transpose sums small arrays over the devices. jax would say it of
    the large one, at the first operation that meets both.
    """
    varying, wanted = (jax.typeof(v).manual_axis_type.varying for v in (a, like))
    missing = tuple(sorted(wanted - varying))
    return lax.pcast(a, missing, to="varying") if missing else a


def _extent(aval: Any, axes: Axes) -> tuple[Axes, tuple[Any, ...]]:
    """Sizes of ``axes``, and how a mesh with explicit axes partitions them: what `spread` restores."""
    return tuple(aval.shape[i] for i in axes), tuple(aval.sharding.spec[i] for i in axes)


def _resized(aval: Any, axes: Axes, sizes: Sequence[int], partitions: Sequence[Any]) -> Any:
    shape, spec = list(aval.shape), list(aval.sharding.spec)
    for axis, size, partition in zip(axes, sizes, partitions, strict=True):
        shape[axis], spec[axis] = size, partition
    sharding = aval.sharding.update(spec=PartitionSpec(*spec))
    return aval.update(shape=tuple(shape), sharding=sharding, weak_type=False)


# --- the primitives ------------------------------------------------------------------------------

_collect = Primitive("norm_collect")
_collect.multiple_results = True
_spread = Primitive("norm_spread")
_spread.multiple_results = True


@_collect.def_abstract_eval
def _(*avals: Any, axes: Axes) -> list[Any]:
    ones, nones = (1,) * len(axes), (None,) * len(axes)
    return [_resized(aval, axes, ones, nones) for aval in avals]


@_spread.def_abstract_eval
def _(*avals: Any, axes: Axes, sizes: Axes, partitions: tuple[Any, ...]) -> list[Any]:
    return [_resized(aval, axes, sizes, partitions) for aval in avals]


def _transpose_collect(cotangents: Any, *operands: Any, axes: Axes) -> list[jax.Array]:
    sizes, partitions = _extent(operands[0].aval, axes)
    cotangents = map(ad.instantiate_zeros, cotangents)
    return _spread.bind(*cotangents, axes=axes, sizes=sizes, partitions=partitions)


def _transpose_spread(cotangents: Any, *_: Any, axes: Axes, **__: Any) -> list[jax.Array]:
    return _collect.bind(*map(ad.instantiate_zeros, cotangents), axes=axes)


def _define_linear(primitive: Primitive, transpose: Any, sum_or_repeat: Any) -> None:
    """The rules that every linear map over some axes of several arrays shares."""

    def differentiate(primals: Any, tangents: Any, **params: Any) -> Any:
        outputs = primitive.bind(*primals, **params)
        return outputs, primitive.bind(*map(ad.instantiate_zeros, tangents), **params)

    def batch(args: Any, dims: Any, *, axes: Axes, **params: Any) -> Any:
        size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
        args = [batching.bdim_at_front(a, d, size) for a, d in zip(args, dims, strict=True)]
        outputs = primitive.bind(*args, axes=tuple(i + 1 for i in axes), **params)
        return outputs, [0] * len(outputs)

    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("axes", "sizes", "partitions")))
    ad.primitive_jvps[primitive] = differentiate
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(sum_or_repeat, multiple_results=True))


# --- what they compile to ------------------------------------------------------------------------


def _sums(*arrays: jax.Array, axes: Axes) -> list[jax.Array]:
    return [a.sum(axes, keepdims=True) for a in arrays]


def _repeats(*arrays: jax.Array, axes: Axes, sizes: Axes, partitions: Any) -> list[jax.Array]:
    del partitions  # the sharding of the result is part of its type
    shape = list(arrays[0].shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return [lax.broadcast_in_dim(a, shape, tuple(range(a.ndim))) for a in arrays]


# XLA:CPU unrolls a reduction of so few elements, and vectorizes it over the axis that follows. A longer
# one becomes scalar code; and sums that are reductions of their own become passes of their own, each of
# which stores its float32 operand first. See benchmarks/README.md.
_UNROLLED = 16


def _sums_on_cpu(*arrays: jax.Array, axes: Axes) -> list[jax.Array]:
    """All sums in one pass: one axis folded by a short reduction with several results, the rest summed."""
    shape = arrays[0].shape
    length, axis = max((_fold_length(shape[i]), i != len(shape) - 1, i) for i in axes)[::2]
    if length == 1:
        return _sums(*arrays, axes=axes)
    whole = shape[axis] - shape[axis] % length
    folded = _fold([lax.slice_in_dim(a, 0, whole, axis=axis) for a in arrays], axis, length)
    sums = _sums(*folded, axes=axes)
    if whole == shape[axis]:
        return sums
    tails = _sums(*(lax.slice_in_dim(a, whole, shape[axis], axis=axis) for a in arrays), axes=axes)
    return [s + tail for s, tail in zip(sums, tails, strict=True)]


def _fold_length(size: int) -> int:
    """How many elements to fold: a divisor of ``size`` unless only a poor one is short enough."""
    if size <= _UNROLLED:
        return max(size, 1)
    divisor = max(k for k in range(1, _UNROLLED + 1) if size % k == 0)
    return divisor if divisor >= _UNROLLED // 2 else _UNROLLED


def _fold(arrays: list[jax.Array], axis: int, length: int) -> Sequence[jax.Array]:
    """Sums of every ``length`` elements along ``axis``, all arrays in one reduction."""
    shape = arrays[0].shape
    blocks = shape[axis] // length
    # The last axis must keep lanes to vectorize over; of any other, neighbours are folded.
    pair, short = (
        ((length, blocks), axis) if axis == len(shape) - 1 else ((blocks, length), axis + 1)
    )
    split = [a.reshape(shape[:axis] + pair + shape[axis + 1 :]) for a in arrays]
    zeros = [jnp.zeros((), a.dtype) for a in arrays]

    def add(xs: Sequence[jax.Array], ys: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(x + y for x, y in zip(xs, ys, strict=True))

    return lax.reduce(tuple(split), tuple(zeros), add, (short,))


def _lower_sums_on_cpu(context: Any, *operands: Any, axes: Axes) -> Any:
    # Folding splits an axis, which a partitioner may only manage by gathering it. So it is for programs
    # of one device, and for the part of one device under shard_map and pmap.
    place = context.module_context.axis_context
    if isinstance(place, mlir.SPMDAxisContext):
        partitioned = set(place.manual_axes) != set(place.mesh.axis_names)
    else:
        partitioned = getattr(place, "num_devices", 1) != 1
    sums = _sums if partitioned else _sums_on_cpu
    return mlir.lower_fun(sums, multiple_results=True)(context, *operands, axes=axes)


_define_linear(_collect, _transpose_collect, _sums)
_define_linear(_spread, _transpose_spread, _repeats)
mlir.register_lowering(_collect, _lower_sums_on_cpu, platform="cpu")
