"""Batch norm that saves something other than x for its backward pass.

It saves either the output, which the next layer keeps anyway (In-Place Activated BatchNorm, Rota Bulò, Porzi
and Kontschieder, 2018, https://arxiv.org/abs/1712.02616), or the normalized x in lower precision. The
backward pass recovers x from it.
"""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._activation import inverse
from ...core._all_reduce import AxisIndexGroups, AxisName
from ...core._derivative_of import with_derivative_of
from ...core._moments import moments_with_derivative, reduce_moments
from ...core._normalize import normalize
from ...core._pool import Moments
from ...core._precision import upcast
from ...core._residuals import rematerialized, saveable
from .._shared._prepare import Prepared

SaveAs: TypeAlias = Literal["output"] | DTypeLike


def normalized_saving(
    save_as: SaveAs,
    p: Prepared,
    reduced: tuple[int, ...],
    epsilon: float,
    axis_name: AxisName | None,
    activation: str | None,
) -> tuple[jax.Array, Moments]:
    """Returns the normalized and activated ``p.x``, and its moments over the axes ``reduced``."""

    @rematerialized
    def norm(x: jax.Array, *affine: jax.Array | None) -> tuple[jax.Array, Moments]:
        still = lax.stop_gradient(upcast(x))
        m = reduce_moments(still, reduced, None, axis_name, None, narrow=x)
        m = Moments(*map(saveable, m))
        y, again = both(x, m, *lax.stop_gradient(affine))
        # The values come from x, the derivatives from the same computation on the recovered x.
        of_again = moments_with_derivative(m, again, reduced, axis_name)
        leaves = (finish(again, of_again, *affine), *of_again)
        y, *m = with_derivative_of((y, *m), leaves)
        return y, Moments(*m)

    def finish(x: jax.Array, m: Moments, *affine: jax.Array | None) -> jax.Array:
        x = upcast(x, *affine)
        y = normalize(x, m.mean, m.var, *affine, epsilon=epsilon, activation=activation)
        return y.astype(p.dtype)

    @jax.custom_jvp
    def both(x: jax.Array, m: Moments, *affine: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the output and x; when differentiated, x is recovered from the saved array."""
        return finish(x, m, *affine), upcast(x)

    @both.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        x, m, *affine = primals
        y = finish(*primals)
        variance = m.var + epsilon
        std = jnp.sqrt(jnp.where(variance == 0, 1, variance))  # a constant input: (x - mean) is 0
        # Without the barrier, XLA would recompute the saved array from x and keep x instead.
        if save_as == "output":
            y = lax.optimization_barrier(y)
            normalized = _normalized_of_output(saveable(y), *affine, activation=activation)
        else:
            normalized = _rounded((upcast(x) - m.mean) / std, *affine, dtype=save_as)
            normalized = saveable(lax.optimization_barrier(normalized))
        again = normalized.astype(std.dtype) * std + m.mean
        return (y, again), (jnp.zeros_like(y), tangents[0].astype(again.dtype))

    return norm(p.x, *p.parameters.values())


def _normalized_of_output(
    y: jax.Array, scale: jax.Array | None, bias: jax.Array | None, *, activation: str | None
) -> jax.Array:
    """Recovers (x - mean) / std from the output ``y``; NaN in channels where ``y`` does not determine it.

    The error is the rounding error of y, times |bias / scale| if that is more than 1.
    """
    before = inverse(upcast(y, scale, bias), activation)
    assert before is not None
    scale = jnp.ones((1,) * y.ndim, before.dtype) if scale is None else scale.astype(before.dtype)
    bias = jnp.zeros_like(scale) if bias is None else bias.astype(before.dtype)
    most = float(jnp.finfo(y.dtype).eps) ** -0.5
    says = (scale != 0) & (jnp.abs(bias) <= most * jnp.abs(scale))
    return (before - bias) / jnp.where(says, scale, jnp.nan)


def _rounded(
    normalized: jax.Array, scale: jax.Array | None, bias: jax.Array | None, *, dtype: DTypeLike
) -> jax.Array:
    """Rounds ``normalized`` to ``dtype`` but keeps the sign of the output, and so the gradient of relu."""
    exact = lax.stop_gradient(upcast(normalized, scale, bias))
    scale = jnp.ones((1,) * exact.ndim, exact.dtype) if scale is None else scale.astype(exact.dtype)
    bias = jnp.zeros_like(scale) if bias is None else bias.astype(exact.dtype)
    nearest = exact.astype(dtype)
    toward = jnp.where(nearest.astype(exact.dtype) > exact, -jnp.inf, jnp.inf).astype(dtype)
    back = lax.nextafter(nearest, toward)
    output, rounded_output = (scale * v.astype(exact.dtype) + bias for v in (exact, nearest))
    stays = (output > 0) == (rounded_output > 0)
    # The value recovered from it is rounded too; at 0, leaky_relu has the gradient of positive values.
    stays &= jnp.abs(rounded_output) >= 1e-5 * jnp.abs(bias)
    stays &= (rounded_output != 0) | (output == 0)
    rounding = lax.stop_gradient(jnp.where(stays, nearest, back).astype(exact.dtype) - exact)
    return (normalized + rounding.astype(normalized.dtype)).astype(dtype)


def check_save_as(
    save_as: SaveAs,
    activation: str | None,
    p: Prepared,
    axis_index_groups: AxisIndexGroups | None,
    virtual_batch_size: int | None,
) -> None:
    """Validates ``save_as`` together with the other arguments.

    Raises:
        ValueError: If ``save_as`` is neither "output" nor a floating dtype of 16 bits or more, if the
            activation is not invertible, if ``x`` is complex, or if an argument is given that it does not
            support.
    """
    if save_as != "output" and not _is_floating(save_as):
        raise ValueError(
            f"save_as must be None, 'output' or a floating dtype of 16 bits or more; got {save_as!r}. None "
            f"saves x unchanged; jnp.bfloat16 halves the memory for a float32 x."
        )
    if save_as == "output" and activation not in (None, "leaky_relu"):
        raise ValueError(
            f"save_as='output' requires an invertible activation, None or 'leaky_relu'; got "
            f"{activation!r}. Use 'leaky_relu', or save_as=jnp.bfloat16."
        )
    if jnp.iscomplexobj(p.x):
        raise ValueError(
            f"save_as must be None for a complex x; got {save_as!r} for x of {p.x.dtype.name}. Leave it out."
        )
    others = {
        "mask": p.mask,
        "residual": p.residual,
        "axis_index_groups": axis_index_groups,
        "virtual_batch_size": virtual_batch_size,
    }
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(
            f"save_as must be None with masks, residuals, device groups or virtual batches; got "
            f"save_as={save_as!r} with {' and '.join(given)}. Leave one of them out."
        )


def _is_floating(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize > 1
    except TypeError:
        return False
