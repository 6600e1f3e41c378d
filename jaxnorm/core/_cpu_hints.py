"""Identities that tell XLA:CPU how to compile; on other platforms they are nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ._jax import Primitive, ad, batching, mlir
from ._portable import is_portable


def materialize(small: jax.Array, after: jax.Array | None = None) -> jax.Array:
    """``small``, computed once and read wherever something is spread with it; ``after`` that, if it is given.

    XLA:CPU computes y again in every loop that needs it, and what is small inside that loop: slow, and not
    exact, since a product and a sum may be contracted in one loop and not in another. The last bit of y then
    depends on the loop: the gradient of a maximum of y, which looks for the element that equals it, finds
    none. On other platforms a store is a kernel of its own.
    """
    if is_portable():
        return small
    if jnp.iscomplexobj(small):
        return lax.complex(materialize(small.real, after), materialize(small.imag, after))
    return _stored.bind(small, *(() if after is None else (after,)))


def materialize_as(dtype: DTypeLike, small: jax.Array) -> jax.Array:
    """``small`` in ``dtype``, materialized if that converts it: otherwise every loop converts it again."""
    return small if small.dtype == dtype else materialize(small.astype(dtype))


def read_separately(x: jax.Array) -> jax.Array:
    """``x``, read in the backward pass by loops of their own, even if a forward loop reads it too.

    XLA:CPU merges loops that read the same array, and vectorizes what comes of it worse. Where nothing is
    differentiated there is no backward pass, and a norm may be merged with what makes x.
    """
    return x if is_portable() else _apart.bind(x)


def _divided_by_one(small: jax.Array, *after: jax.Array) -> jax.Array:
    """XLA does not compute a division twice; so this divides by a one that it does not recognize."""
    anything = after[0] if after else small
    return small / jnp.where((anything == anything) | (anything != anything), 1, 2)


def _itself(a: jax.Array, *_: jax.Array) -> jax.Array:
    return a


def _identity(
    name: str,
    on_cpu: Callable[..., jax.Array] | None,
    *,
    differentiated: Primitive | None = None,
    of_tangents: bool = False,
) -> Primitive:
    """The first of some operands, the others being hints.

    Where it is differentiated, its value is that of the primitive ``differentiated``, if one is given. With
    ``of_tangents`` it is the same again of tangents and cotangents.
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
_stored = _identity("norm_stored", _divided_by_one, of_tangents=True)
