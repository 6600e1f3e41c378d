"""Identities that tell XLA:CPU how to compile; on other platforms they are nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def stored(small: jax.Array, after: jax.Array | None = None) -> jax.Array:
    """``small``, computed once and read wherever something is spread with it; ``after`` that, if it is given.

    XLA:CPU computes y again in every loop that needs it, and what is small inside that loop: slow, and not
    exact, since a product and a sum may be contracted in one loop and not in another. The last bit of y then
    depends on the loop: the gradient of a maximum of y, which looks for the element that equals it, finds
    none. On other platforms a store is a kernel of its own.
    """
    if jnp.iscomplexobj(small):
        return lax.complex(stored(small.real, after), stored(small.imag, after))
    return _stored.bind(small, *(() if after is None else (after,)))


def read_apart(x: jax.Array) -> jax.Array:
    """``x``, read in the backward pass by loops of their own, even if a forward loop reads it too.

    XLA:CPU merges loops that read the same array, and vectorizes what comes of it worse. Only x is held
    apart, and not its cotangent: a TPU and a GPU are to make that in the loop that sums it.
    """
    return _apart.bind(x)


def _divided_by_one(small: jax.Array, *after: jax.Array) -> jax.Array:
    """XLA does not compute a division twice; so this divides by a one that it does not recognize."""
    anything = after[0] if after else small
    return small / jnp.where((anything == anything) | (anything != anything), 1, 2)


def _identity(name: str, on_cpu: Callable[..., jax.Array], *, of_tangents: bool) -> Primitive:
    """The first of some operands, the others being hints; ``of_tangents``: its tangents likewise."""
    primitive = Primitive(name)

    def again(a: Any) -> Any:
        return a if isinstance(a, ad.Zero) or not of_tangents else primitive.bind(a)

    def batch(args: Any, dims: Any) -> Any:
        hints = [a for a, d in zip(args[1:], dims[1:], strict=True) if d == dims[0]]
        return primitive.bind(args[0], *hints), dims[0]

    primitive.def_impl(lambda a, *hints: a)
    primitive.def_abstract_eval(lambda a, *hints: a)
    ad.primitive_jvps[primitive] = lambda primals, tangents: (
        primitive.bind(*primals),
        again(tangents[0]),
    )
    ad.primitive_transposes[primitive] = lambda cotangent, a: [again(cotangent)]
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lambda context, a, *hints: [a])
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, False), platform="cpu")
    return primitive


_stored = _identity("norm_stored", _divided_by_one, of_tangents=True)
_apart = _identity("norm_read_apart", lax.optimization_barrier, of_tangents=False)
