"""Everything that jaxnorm uses from jax outside of its stable API. Tested with jax 0.8, 0.10 and 0.12.

- `Primitive`, `ad`, `batching`, `mlir`: primitives with their differentiation, batching and lowering rules.
  They have no substitute: without them, all norms would be those of `portable`, on every platform.
- `partial_eval.dce_jaxpr`: which operands a function reads, and which operations its results depend on.
  `eval_jaxpr`: a function of only these. Without them, more is saved for the backward pass, and lowering
  takes longer.
- `checkpoint_name`, and the checkpoint policy for it: sums are saved, and no other intermediate values.
  Without them, the sums are computed twice.
- `SymbolicZero`: differentiation of evaluation with respect to only some arguments. Without it, it is with
  respect to all.
- `manual_axis_type.varying`: over which axes of shard_map an operand varies. It was called ``vma``.
- `jaxprs_in_params`: the functions that an equation calls. The tools follow a model's values through them.
- `get_axis_env`: the mapped axes that an error message lists. Without it, the message lists none.

The tools also read jaxprs (`jax.extend.core` in `tools/_fold/_dataflow.py`).
"""

from typing import TYPE_CHECKING, Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name as checkpoint_name
from jax.core import eval_jaxpr as eval_jaxpr
from jax.custom_derivatives import SymbolicZero as SymbolicZero
from jax.interpreters import (
    ad as ad,
    batching as batching,
    mlir as mlir,
    partial_eval as partial_eval,
)

if TYPE_CHECKING:
    from jax.extend.core import Primitive as Primitive
else:  # the same class without jax.extend, which imports Pallas: that takes longer than jaxnorm
    Primitive = type(lax.add_p)


def varying_over(a: jax.Array) -> frozenset[str]:
    """Returns the axes of shard_map over which ``a`` varies."""
    aval = jax.typeof(a)
    if hasattr(aval, "manual_axis_type"):
        return aval.manual_axis_type.varying
    return aval.vma  # before jax 0.10


def as_varying(a: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Returns ``a`` cast to vary over ``axes`` of shard_map."""
    if hasattr(lax, "pcast"):
        return lax.pcast(a, axes, to="varying")
    return lax.pvary(a, axes)  # before 0.8.2  # pyright: ignore[reportAttributeAccessIssue]


def jaxprs_in(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs among the parameters of an equation."""
    try:
        from jax.extend.core import jaxprs_in_params  # imported late, as above
    except ImportError:  # before jax 0.10
        from jax.core import jaxprs_in_params
    return list(jaxprs_in_params(params))


def axes_bound() -> tuple[str, ...]:
    """Returns the mapped axes in the current context, or none if jax does not provide them."""
    try:
        from jax._src.core import get_axis_env

        return tuple(map(str, get_axis_env().axis_sizes))
    except (ImportError, AttributeError):
        return ()
