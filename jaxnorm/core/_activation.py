"""Activations computed in the same pass as a norm, so that nothing between the two is stored."""

import functools

import jax
import jax.numpy as jnp

from ._elementwise import Elementwise
from ._precision import promoted_dtype
from ._reduce import map_elementwise
from ._residuals import saveable
from .lowering._cpu_hints import rounded

NEGATIVE_SLOPE = 0.01  # the default of jax.nn.leaky_relu

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": functools.partial(jax.nn.leaky_relu, negative_slope=NEGATIVE_SLOPE),
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}
_PIECEWISE_LINEAR = ("relu", "leaky_relu")


def map_activated(
    f: Elementwise,
    *operands: jax.Array,
    activation: str | None,
    residual: jax.Array | None,
) -> jax.Array:
    """Adds ``residual`` to the single result of ``f`` and applies ``activation``.

    The backward pass recomputes this from the operands. If the activation is piecewise linear, the backward
    pass needs only the sign of the sum, so that is saved instead of ``residual``: one byte per element.
    """
    if residual is None:
        return map_elementwise(_then(f, activation, adds=False), *operands)[0]
    if activation not in _PIECEWISE_LINEAR:
        return map_elementwise(_then(f, activation, adds=True), *operands, residual)[0]
    (y,) = map_elementwise(_then(f, None, adds=True), *operands, residual)
    if activation == "relu":
        return jnp.where(saveable(y > 0), y, 0)
    return jnp.where(saveable(y >= 0), y, NEGATIVE_SLOPE * y)


@functools.cache
def _then(f: Elementwise, activation: str | None, *, adds: bool) -> Elementwise:
    if activation is None and not adds:
        return f

    def then(*operands: jax.Array) -> tuple[jax.Array]:
        if adds:
            return (activated(rounded(f(*operands[:-1])[0]), activation, operands[-1]),)
        return (activated(f(*operands)[0], activation, None),)

    return then


def activated(x: jax.Array, activation: str | None, residual: jax.Array | None) -> jax.Array:
    """Adds ``residual`` to ``x`` and applies ``activation``, in JAX's own primitives."""
    y = x if residual is None else x + residual
    act = _ACTIVATIONS.get(activation or "")
    return y if act is None else act(y)


def check_activation(
    activation: str | None,
    residual: jax.Array | None,
    x: jax.Array,
    *parameters: jax.Array | None,
) -> jax.Array | None:
    """Checks ``activation`` and ``residual``, and returns ``residual`` as an array.

    Raises:
        ValueError: If ``activation`` is unknown or would receive complex values, or if the shapes of
            ``residual`` and ``x`` differ.
    """
    if activation is not None and activation not in list(_ACTIVATIONS):
        raise ValueError(
            f"activation must be None or one of {', '.join(_ACTIVATIONS)}; got {activation!r}. Apply any "
            f"other activation to the result, in a separate pass."
        )
    dtype = promoted_dtype(x, residual, *parameters)
    if activation is not None and jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"activation must be None for complex values; got {activation!r} for a {dtype.name} result. "
            f"Apply the activation to the real and imaginary parts of the result yourself."
        )
    if residual is None:
        return None
    residual = jnp.asarray(residual)
    if residual.shape != x.shape:
        raise ValueError(
            f"residual must have the shape of x; got {residual.shape} for x of shape {x.shape}. It is added "
            f"elementwise, before the activation: broadcast it or project it to that shape."
        )
    return residual


def inverse(y: jax.Array, activation: str | None) -> jax.Array | None:
    """Returns the input for which ``activation`` gives ``y``, or None if ``activation`` has no inverse."""
    if activation is None:
        return y
    if activation == "leaky_relu":
        return jnp.where(y >= 0, y, y / NEGATIVE_SLOPE)
    return None
