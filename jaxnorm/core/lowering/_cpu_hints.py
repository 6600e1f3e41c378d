"""Functions that tell XLA:CPU how to compile. On other platforms they add nothing."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .._jax import Primitive, ad, batching, mlir
from .._portable import is_portable
from .._precision import real_dtype
from ._lowering import runs_as


def materialize(small: jax.Array, after: jax.Array | None = None) -> jax.Array:
    """Returns ``small``, computed only once and stored; if ``after`` is given, after that.

    XLA:CPU recomputes y in every loop that needs it, and inside those loops also the small arrays that y
    depends on. This is slow. It is also inconsistent: a product and a sum may be contracted in one loop and
    not in another, so the last bit of y depends on the loop. The gradient of a maximum of y, which looks for
    the element that equals the maximum, then finds none.

    `lax.optimization_barrier` is not enough: XLA:CPU removes it before it decides what to fuse. But XLA never
    computes a division twice, so on a CPU ``small`` is divided by a one that XLA does not recognize. On other
    platforms, where a store would be a kernel of its own, this is the identity.
    """
    if is_portable():
        return small
    if jnp.iscomplexobj(small):
        return lax.complex(materialize(small.real, after), materialize(small.imag, after))
    return _stored.bind(small, *(() if after is None else (after,)))


def materialize_as(dtype: DTypeLike, small: jax.Array) -> jax.Array:
    """Casts ``small`` to ``dtype``, and materializes the result of a cast, or else every loop repeats it."""
    return small if small.dtype == dtype else materialize(small.astype(dtype))


def read_separately(x: jax.Array) -> jax.Array:
    """Returns ``x``, for the backward pass to read in its own loops even if a forward loop reads it too.

    XLA:CPU merges loops that read the same array, and vectorizes the merged loop less well. Without
    differentiation there is no backward pass, and XLA may fuse a norm with whatever produces x.
    """
    return x if is_portable() else _apart.bind(x)


def stored_share(n: float, like: jax.Array) -> jax.Array:
    """Returns 1 / ``n`` in the shape of ``like``, for `divided`; NaN may be twice that."""
    return _share.bind(like, n=n)


def divided(total: jax.Array, n: float, share: jax.Array) -> jax.Array:
    """Returns ``total`` / ``n``, on a CPU as a product with the `stored_share` of ``n``.

    XLA:CPU compiles a program for each number that a computation contains, and a network has batch norms of
    the same size over different numbers of positions. So the number is read from memory.
    """
    return _divided.bind(total, share, n=n)


def rounded(product: jax.Array) -> jax.Array:
    """Returns ``product``, to be rounded before anything is added to it: XLA:CPU never contracts the two.

    If it contracts them in one loop and not in another, the last bit of y depends on the loop; `materialize`
    says what goes wrong then. The LLVM of jax 0.12 does not contract in loops that it interleaves over few
    channels, as `tests.norms.maxima` shows with 8.
    """
    return product if is_portable() else _rounded.bind(product)


def _divided_by_one(small: jax.Array, *after: jax.Array) -> jax.Array:
    """Divides ``small`` by a one that XLA does not recognize, and that depends on ``after`` if given."""
    if not after:
        return small / _two_where(small != small, small.dtype)  # half a NaN is NaN
    return small / _two_where((after[0] == after[0]) & (after[0] != after[0]), small.dtype)


def _two_where(unlikely: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns 1, but 2 where ``unlikely`` is True."""
    return lax.select(unlikely, *(jnp.full_like(unlikely, n, dtype) for n in (2, 1)))


def _nan_or_itself(a: jax.Array) -> jax.Array:
    """Returns ``a`` through a select that neither XLA nor LLVM removes, or moves an addition across."""
    return a if jnp.iscomplexobj(a) else lax.select(a == a, a, jnp.full_like(a, jnp.nan))


def _itself(a: jax.Array, *_: jax.Array) -> jax.Array:
    return a


def _identity(
    name: str,
    on_cpu: Callable[..., jax.Array] | None,
    *,
    differentiated: Primitive | None = None,
    of_tangents: bool = False,
) -> Primitive:
    """Makes a primitive that returns its first operand; the others are hints.

    On a CPU it is lowered by ``on_cpu``, if given. When differentiated, the value comes from the primitive
    ``differentiated``, if given. With ``of_tangents`` it also applies to tangents and cotangents.
    """
    primitive = Primitive(name)

    def again(a: Any) -> Any:
        return primitive.bind(a) if of_tangents and not isinstance(a, ad.Zero) else a

    def differentiate(primals: Any, tangents: Any) -> Any:
        return (differentiated or primitive).bind(*primals), again(tangents[0])

    def batch(args: Any, dims: Any) -> Any:
        hints = [a for a, d in zip(args[1:], dims[1:], strict=True) if d == dims[0]]
        return primitive.bind(args[0], *hints), dims[0]

    primitive.def_impl(_itself)
    primitive.def_abstract_eval(_itself)
    ad.primitive_jvps[primitive] = differentiate
    ad.primitive_transposes[primitive] = lambda cotangent, _: [again(cotangent)]
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lambda context, a, *hints: [a])
    if on_cpu is not None:
        mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, False), platform="cpu")
    return primitive


_held = _identity("norm_held", lax.optimization_barrier)
_apart = _identity("norm_read_apart", None, differentiated=_held)
_rounded = _identity("norm_rounded", _nan_or_itself)
_stored = _identity("norm_stored", _divided_by_one, of_tangents=True)


def _plain_share(like: jax.Array, *, n: float) -> jax.Array:
    return jnp.full_like(lax.real(like) if jnp.iscomplexobj(like) else like, 1 / n)


def _stored_share(like: jax.Array, *, n: float) -> jax.Array:
    return (1 / n) / _two_where(like != like, real_dtype(like.dtype))


def _plainly_divided(total: jax.Array, _: jax.Array, *, n: float) -> jax.Array:
    return total / n


def _times_share(total: jax.Array, share: jax.Array, *, n: float) -> jax.Array:
    del n
    return total * share.astype(total.dtype)


def _batch_in_front(primitive: Primitive, args: Any, dims: Any, *, n: float) -> Any:
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    args = [batching.bdim_at_front(a, d, size) for a, d in zip(args, dims, strict=True)]
    return primitive.bind(*args, n=n), 0


def _transpose_divided(cotangent: Any, _: Any, share: jax.Array, *, n: float) -> list[Any]:
    return [_divided.bind(cotangent, share, n=n), None]


_share, _divided = Primitive("norm_share"), Primitive("norm_divided")
_share.def_abstract_eval(lambda like, *, n: like.update(dtype=real_dtype(like.dtype)))
_divided.def_abstract_eval(lambda total, share, *, n: total)
ad.defjvp(_share, None)
ad.defjvp(_divided, lambda along, _, share, *, n: _divided.bind(along, share, n=n), None)
ad.primitive_transposes[_divided] = _transpose_divided
for _primitive, _plain, _on_cpu in (
    (_share, _plain_share, _stored_share),
    (_divided, _plainly_divided, _times_share),
):
    runs_as(_primitive, _plain, "n")
    batching.primitive_batchers[_primitive] = functools.partial(_batch_in_front, _primitive)
    mlir.register_lowering(_primitive, mlir.lower_fun(_plain, False))
    mlir.register_lowering(_primitive, mlir.lower_fun(_on_cpu, False), platform="cpu")
