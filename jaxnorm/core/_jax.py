"""All that jaxnorm takes from jax beyond its stable interface. Tested with jax 0.10.2 and 0.12.0.

- `Primitive`, `ad`, `batching`, `mlir`: primitives with their derivatives, batching and lowerings. Nothing
  would replace them: norms would be those of `portable` on every platform.
- `partial_eval.dce_jaxpr`: which operands a function reads. Without it more is saved for backward.
- `checkpoint_name`, and the checkpoint policy that knows it: sums are saved, and no other intermediate.
  Without it they are taken twice.
- `SymbolicZero`: evaluation may be differentiated for some of its arguments. Without it, for all.
- `manual_axis_type.varying`: over which devices of shard_map an operand varies. It was called ``vma``.
- `get_axis_env`: a message lists the mapped axes. Without it, it does not.

The tools read jaxprs as well (`jax.extend.core` in `tools/_dataflow.py`).
"""

from typing import TYPE_CHECKING

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name as checkpoint_name
from jax.custom_derivatives import SymbolicZero as SymbolicZero
from jax.interpreters import (
    ad as ad,
    batching as batching,
    mlir as mlir,
    partial_eval as partial_eval,
)

if TYPE_CHECKING:
    from jax.extend.core import Primitive as Primitive
else:  # the same, without importing all of jax.extend: Pallas takes longer than jaxnorm
    Primitive = type(lax.add_p)


def varying_over(a: jax.Array) -> frozenset[str]:
    """The mapped axes of shard_map over whose devices ``a`` varies."""
    return jax.typeof(a).manual_axis_type.varying


def axes_bound() -> tuple[str, ...]:
    """The mapped axes here, as far as jax says."""
    try:
        from jax._src.core import get_axis_env

        return tuple(map(str, get_axis_env().axis_sizes))
    except (ImportError, AttributeError):
        return ()
