"""Sums about a value near the mean, before any pooling over mapped axes.

    shift         a value near the mean, a constant
    total         Σ(x - shift)
    squares       Σ|x - shift|²

Moments follow from these sums for any shift (`_pool`), but the best choice of shift depends on the compiler.
So the sums are a primitive: a program says what to sum, and the lowering rules at the end choose the shift.

The JVP rule treats the shift as a constant: d total = Σ dx, d squares = 2 Σ Re (x - shift)* dx.

If x was upcast from bfloat16, a TPU takes the latter as 2 Σ x dx - 2 shift Σ dx. Then the backward pass
computes dx from dy, x and three numbers, not four, which is simple enough for XLA to do it where dx is read:
in the gradients of the convolution before a batch norm. A large mean costs digits: the error is up to 1e-7 of
dx times mean/std. In bfloat16, mean/std is less than 256 unless almost all values are equal, and dx has eight
bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ._axes import is_static, size_of
from ._elementwise import Which, merge, partition, some_of, tangent_of
from ._exact_sums import exact_sums, most_elements
from ._guess import about_guess, two_passes
from ._jax import Primitive, ad, batching, mlir
from ._placement import match_sharding, match_varying, partitions
from ._pool import Blocks, abs_square, partition_of_blocks, repeat_blocks, sum_blocks
from ._portable import is_portable
from ._precision import real_dtype
from ._reduce import sum_elementwise
from ._residuals import saveable
from ._shift import about_a_few, count, mean_of, powers_about
from .lowering._lowering import devices_of, lowered_by, runs_as
from .lowering._platform import compiled_for


def central_sums(
    x: jax.Array,
    axes: tuple[int, ...],
    *,
    narrow: jax.Array | None = None,
    mask: jax.Array | None = None,
    guess: jax.Array | None = None,
    blocks: Blocks | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the shift, Σ(x - shift) and Σ|x - shift|² over ``axes``, which keep size 1.

    ``narrow`` is the array in memory from which ``x`` was upcast, if any. ``guess`` estimates the mean, in
    the shape of the results. With ``blocks``, each block has its own sums and shift.
    """
    if is_portable():
        return _by_the_textbook(x, axes, mask, blocks)
    still = lax.stop_gradient((x if narrow is None else narrow, mask, guess))
    operands = (x, *still)
    given = tuple(a is not None for a in operands)
    operands, _ = match_sharding(match_varying(partition(operands, given)[0]), x.shape)
    shift, total, squares = _central_sums.bind(
        *operands, axes=axes, blocks=blocks, given=given, differentiated=False
    )
    return shift, total, squares


def _by_the_textbook(
    x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None, blocks: Blocks | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the sums about the mean itself, which is differentiated like any other value."""
    mean = mean_of(x, mask, axes, blocks)
    f, counted = powers_about(mask)
    center = mean if blocks is None else repeat_blocks(mean, blocks, x)
    sums = sum_elementwise(some_of(f, (1,)), x, center, *counted, axes=axes)
    (squares,) = sums if blocks is None else sum_blocks(sums, blocks)
    return mean, jnp.zeros_like(mean), squares


# --- the primitive ---------------------------------------------------------------------------------

_central_sums = Primitive("norm_central_sums")
_central_sums.multiple_results = True


@_central_sums.def_abstract_eval
def _(
    x: Any, *others: Any, axes: tuple[int, ...], blocks: Blocks | None, given: Which, **_: Any
) -> list[Any]:
    counted = (others[1],) if given[2] else ()
    spec = [None if i in axes else p for i, p in enumerate(partitions((x, *counted), x.shape))]
    sizes = [1 if i in axes else n for i, n in enumerate(x.shape)]
    if blocks is not None:
        spec[blocks.axis] = partition_of_blocks(x, blocks)
        sizes[blocks.axis] = blocks.number
    sharding = x.sharding.update(spec=PartitionSpec(*spec))
    sums = x.update(shape=tuple(sizes), sharding=sharding, weak_type=False)
    return [sums, sums, sums.update(dtype=real_dtype(x.dtype))]


def _differentiate(primals: Any, tangents: Any, *, given: Which, **params: Any) -> Any:
    params["differentiated"] = True
    sums = [saveable(s) for s in _central_sums.bind(*primals, given=given, **params)]
    x, narrow, mask, _ = merge(primals, [None] * 4, given)
    axes, blocks, shift = params["axes"], params["blocks"], sums[0]
    none = [ad.Zero(jax.typeof(s).to_tangent_aval()) for s in sums]
    if isinstance(tangents[0], ad.Zero):
        return sums, none
    on_tpu = compiled_for("tpu") if narrow.dtype == jnp.bfloat16 else None
    center = shift if on_tpu is None else lax.select(on_tpu, jnp.zeros_like(shift), shift)
    if blocks is not None:
        center = repeat_blocks(center, blocks, x)
    f, counted = powers_about(mask)
    derivative = tangent_of(f, (True, False, *(False for _ in counted)))
    along = sum_elementwise(derivative, x, center, *counted, tangents[0], axes=axes)
    total, squares = along if blocks is None else sum_blocks(along, blocks)
    if on_tpu is not None:
        # Both factors are selected, so that elsewhere XLA folds 0 * 0: it would keep 0 * total.
        zero = jnp.zeros_like(shift)
        squares -= lax.select(on_tpu, 2 * shift, zero) * lax.select(on_tpu, total, zero)
    return sums, [none[0], total, squares]


def _batch(
    args: Any,
    dims: Any,
    *,
    axes: tuple[int, ...],
    blocks: Blocks | None,
    given: Which,
    **params: Any,
) -> Any:
    operands, at = merge(args, [None] * 4, given), merge(dims, [None] * 4, given)
    if not any(d is not None for d in at[:3]):  # sums do not depend on the guess
        given = (*given[:3], False)
        args = partition(operands, given)[0]
        sums = _central_sums.bind(*args, axes=axes, blocks=blocks, given=given, **params)
        return sums, [None] * len(sums)

    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)

    def at_front(i: int) -> jax.Array:
        broadcast = at[i] is None and i > 1  # not x: it gives the results their shape
        return operands[i][None] if broadcast else batching.bdim_at_front(operands[i], at[i], size)

    sums = _central_sums.bind(
        *(at_front(i) for i, is_given in enumerate(given) if is_given),
        axes=tuple(i + 1 for i in axes),
        blocks=None if blocks is None else Blocks(blocks.axis + 1, blocks.number),
        given=given,
        **params,
    )
    return sums, [0] * len(sums)


ad.primitive_jvps[_central_sums] = _differentiate
batching.primitive_batchers[_central_sums] = _batch


# --- the lowering rules ----------------------------------------------------------------------------


def _about_a_few(*operands: jax.Array, given: Which, axes: Any, blocks: Any, **_: Any) -> Any:
    x, narrow, mask, _ = merge(operands, [None] * 4, given)
    return about_a_few(x, narrow, mask, axes, blocks)


def _on_gpu(*operands: jax.Array, given: Which, differentiated: bool, **params: Any) -> Any:
    """Takes two passes over rows that are not differentiated, in one kernel with what reads the row next.

    XLA:GPU keeps a row in a thread block and reads it again there, if the sums of the row are taken one after
    the other. So Σ(x - mean), which is only the rounding error of the mean, is taken to be 0, as in any
    two-pass algorithm.
    """
    x, _, mask, _ = merge(operands, [None] * 4, given)
    axes, blocks = params["axes"], params["blocks"]
    rows = blocks is None and axes == tuple(range(x.ndim - len(axes), x.ndim)) != ()
    if differentiated or not rows:
        return _about_a_few(*operands, given=given, **params)
    mean, _, squares = two_passes(x, mask, axes)
    return [mean, jnp.zeros_like(mean), squares]


def _on_tpu(
    *operands: jax.Array, given: Which, axes: Any, blocks: Any, devices: int, **_: Any
) -> Any:
    """Prefers sums that read only x, which XLA:TPU fuses into the convolution or matmul that makes x.

    Exact sums come first: sums about a guess need a branch, and a copy of a small x for it.
    """
    x, narrow, mask, guess = merge(operands, [None] * 4, given)
    dtype = narrow.dtype if narrow.dtype in (jnp.bfloat16, jnp.float16) else x.dtype
    if is_static(x.shape) and 1 < size_of(x, axes) <= most_elements(dtype):
        sums = exact_sums(x, dtype, mask, count(x, mask, axes), axes)
        return sums if blocks is None else _of_blocks(sums, x, count(x, mask, axes), blocks)
    if x.dtype == jnp.float32 and guess is not None and blocks is None:
        return about_guess(x, narrow, mask, guess, axes, devices)
    return about_a_few(x, narrow, mask, axes, blocks)


def _of_blocks(
    sums: list[jax.Array], x: jax.Array, n: jax.Array, blocks: Blocks
) -> list[jax.Array]:
    """Returns each block's sums about its mean, given each position's sums about its own mean."""
    means, total, squares = sums
    weighted, of_block = sum_blocks([n * means, jnp.broadcast_to(n, means.shape)], blocks)
    shift = weighted / jnp.maximum(of_block, 1)
    offset = means - repeat_blocks(shift, blocks, x)
    about_shift = total + n * offset, squares + 2 * offset * total + n * abs_square(offset)
    return [shift, *sum_blocks(about_shift, blocks)]


def _register(platform: str | None, compute: Callable[..., Any]) -> None:
    def lower(context: Any, *operands: Any, **params: Any) -> Any:
        if platform == "tpu":
            params["devices"] = devices_of(context)
        return lowered_by(compute, **params)(context, *operands)

    mlir.register_lowering(_central_sums, lower, platform=platform)


runs_as(_central_sums, _about_a_few, "axes", "blocks", "given", "differentiated")
_register(None, _about_a_few)
_register("tpu", _on_tpu)
_register("cuda", _on_gpu)
_register("rocm", _on_gpu)
