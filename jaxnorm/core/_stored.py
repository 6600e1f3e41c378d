"""Small arrays that a CPU computes once, and reads in every loop that needs them."""

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
    none. On other platforms this is ``small`` itself: there a store is a kernel of its own.
    """
    if jnp.iscomplexobj(small):
        return lax.complex(stored(small.real, after), stored(small.imag, after))
    return _stored.bind(small, *(() if after is None else (after,)))


_stored = Primitive("norm_stored")
_stored.def_impl(lambda small, *after: small)
_stored.def_abstract_eval(lambda small, *after: small)


def _differentiate(primals: Any, tangents: Any) -> Any:
    direction = tangents[0]
    moves = not isinstance(direction, ad.Zero)
    return _stored.bind(*primals), _stored.bind(direction) if moves else direction


def _transpose(cotangent: Any, small: Any) -> list[Any]:
    return [cotangent if isinstance(cotangent, ad.Zero) else _stored.bind(cotangent)]


def _batch(args: Any, dims: Any) -> Any:
    # Which comes first matters for memory alone: it is said where it can be said simply.
    kept = [a for a, d in zip(args, dims, strict=True) if d == dims[0]]
    return _stored.bind(args[0], *kept[1:]), dims[0]


def _divided_by_one(small: jax.Array, *after: jax.Array) -> jax.Array:
    """XLA does not compute a division twice; so this divides by a one that it does not recognize."""
    anything = after[0] if after else small
    one = jnp.where((anything == anything) | (anything != anything), 1, 2)
    return small / one


ad.primitive_jvps[_stored] = _differentiate
ad.primitive_transposes[_stored] = _transpose
batching.primitive_batchers[_stored] = _batch
mlir.register_lowering(_stored, lambda context, small, *after: [small])
mlir.register_lowering(_stored, mlir.lower_fun(_divided_by_one, False), platform="cpu")
