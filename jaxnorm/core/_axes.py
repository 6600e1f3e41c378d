"""Axes: which are reduced, which are kept, and how parameters broadcast against x."""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Axes: TypeAlias = int | Sequence[int]


def canonical_axes(axes: Axes, ndim: int, name: str) -> tuple[int, ...]:
    """Returns ``axes`` as nonnegative integers in increasing order.

    ``name`` is the caller's name for the argument, used in messages.

    Raises:
        ValueError: If an axis is out of range, repeated or not an integer.
    """
    try:
        several = isinstance(axes, Iterable) and getattr(axes, "ndim", 1) > 0  # rank 0 is one axis
        given = tuple(map(operator.index, axes if several else (axes,)))  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise ValueError(
            f"{name} must be an integer or a sequence of integers; got {axes!r}. "
            f"Give each axis by its number: -1 is the last."
        ) from None
    if given and ndim == 0:
        raise ValueError(
            f"{name} must name axes of an array; got {name}={axes!r} for an array of rank 0, which has "
            f"none. Give it an axis, as in x[None]."
        )
    for axis in given:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"{name} must lie in [{-ndim}, {ndim - 1}] for an array of rank {ndim}; "
                f"got {axis} in {name}={axes!r}. Count all its axes, including the first."
            )
    counted = sorted(axis % ndim for axis in given)
    if len(set(counted)) < len(counted):
        raise ValueError(
            f"{name} must name each axis once; got {name}={axes!r}, which for an array of rank {ndim} "
            f"is {tuple(counted)}. Remove the repeated axis."
        )
    return tuple(counted)


def one_axis(axes: Axes, ndim: int, name: str, meaning: str) -> int:
    """Returns the single axis in ``axes`` as a nonnegative integer; ``meaning`` describes it in messages.

    Raises:
        ValueError: If there is not exactly one axis, or it is out of range.
    """
    several = canonical_axes(axes, ndim, name)
    if len(several) != 1:
        raise ValueError(
            f"{name} must be a single axis here, {meaning}; got {name}={axes!r}. Reshape the axes into one."
        )
    return several[0]


def complement(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Returns the axes that are not in ``axes``, in increasing order."""
    return tuple(i for i in range(ndim) if i not in axes)


def axes_of_instances(x: jax.Array, features: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes that per-instance statistics keep: the batch axis and ``features``.

    Raises:
        ValueError: If the batch axis is one of ``features``.
    """
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch "
            f"axis. Got feature_axes={features} for x of shape {x.shape}; move the batch to axis 0."
        )
    return (0, *features)


def feature_shape(x: jax.Array, feature_axes: Axes, name: str = "feature_axes") -> tuple[int, ...]:
    """Returns the shape of a parameter for ``feature_axes`` of ``x``."""
    return tuple(x.shape[i] for i in canonical_axes(feature_axes, x.ndim, name))


def is_static(shape: Sequence[Any]) -> bool:
    """Returns whether all sizes are integers, not symbolic dimensions of an exported program."""
    return all(isinstance(n, int) for n in shape)


def size_of(x: jax.Array, axes: tuple[int, ...]) -> int:
    """Returns the product of the sizes of ``x`` along ``axes``."""
    return math.prod(x.shape[i] for i in axes)


def broadcast_parameter(
    parameter: jax.Array | None, x: jax.Array, feature_axes: tuple[int, ...], name: str
) -> jax.Array | None:
    """Inserts size-1 axes into a feature-shaped ``parameter``, so that it broadcasts against ``x``.

    Raises:
        ValueError: If ``parameter`` does not have the shape of the feature axes of ``x``.
    """
    if parameter is None:
        return None
    parameter = jnp.asarray(parameter)
    needed = feature_shape(x, feature_axes)
    if parameter.shape != needed:
        raise ValueError(
            f"{name} must have the shape of the feature axes; got {name} of shape {parameter.shape} "
            f"for x of shape {x.shape} with feature_axes={feature_axes}, which needs {needed}. "
            f"Check feature_axes (axis, in a module), or give {name} the shape {needed}."
        )
    return parameter.reshape([x.shape[i] if i in feature_axes else 1 for i in range(x.ndim)])


def broadcasts_to(a: jax.Array, x: jax.Array) -> bool:
    """Whether ``a`` broadcasts to the shape of ``x``, with axes aligned from the last."""
    sizes = zip(reversed(a.shape), reversed(x.shape), strict=False)
    return a.ndim <= x.ndim and all(k in (1, n) for k, n in sizes)
