"""Axes: which are reduced, which are kept, and how a parameter of the kept ones lies against x."""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Axes: TypeAlias = int | Sequence[int]


def canonical_axes(axes: Axes, ndim: int, name: str) -> tuple[int, ...]:
    """``axes`` counted from the front, in increasing order.

    Raises:
        ValueError: an axis is out of range, repeated or not an integer. ``name`` is what the caller
            calls the argument.
    """
    try:
        several = isinstance(axes, Iterable) and getattr(axes, "ndim", 1) > 0  # no array of rank 0
        given = tuple(map(operator.index, axes if several else (axes,)))  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise ValueError(
            f"{name} must be an integer or a sequence of integers; got {axes!r}. "
            f"Name axes by number: -1 is the last."
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
                f"got {axis} in {name}={axes!r}. Count all its axes, the first one included."
            )
    counted = sorted(axis % ndim for axis in given)
    if len(set(counted)) < len(counted):
        raise ValueError(
            f"{name} must name each axis once; got {name}={axes!r}, which for an array of rank {ndim} "
            f"is {tuple(counted)}. Leave out the repeated one."
        )
    return tuple(counted)


def one_axis(axes: Axes, ndim: int, name: str, meaning: str) -> int:
    """The one axis that ``axes`` must be, counted from the front.

    Raises:
        ValueError: there are several or none, or it is out of range.
    """
    several = canonical_axes(axes, ndim, name)
    if len(several) != 1:
        raise ValueError(
            f"{name} must be one axis here, {meaning}; got {name}={axes!r}. Reshape the axes into one."
        )
    return several[0]


def complement(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The other axes, in increasing order."""
    return tuple(i for i in range(ndim) if i not in axes)


def axes_of_instances(x: jax.Array, features: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that a statistic of an instance has: the batch, and the features.

    Raises:
        ValueError: the batch is among the features.
    """
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch "
            f"axis. Got feature_axes={features} for x of shape {x.shape}; move the batch there."
        )
    return (0, *features)


def feature_shape(x: jax.Array, feature_axes: Axes, name: str = "feature_axes") -> tuple[int, ...]:
    """The shape of a parameter that lies along ``feature_axes`` of ``x``."""
    return tuple(x.shape[i] for i in canonical_axes(feature_axes, x.ndim, name))


def is_static(shape: Sequence[Any]) -> bool:
    """Whether all sizes are numbers, and not symbols of a program that is exported for any size."""
    return all(isinstance(n, int) for n in shape)


def size_of(x: jax.Array, axes: tuple[int, ...]) -> int:
    """How many elements of ``x`` one position of the other axes stands for."""
    return math.prod(x.shape[i] for i in axes)


def broadcast_parameter(
    parameter: jax.Array | None, x: jax.Array, feature_axes: tuple[int, ...], name: str
) -> jax.Array | None:
    """A feature-shaped ``parameter`` with size-1 axes inserted, so that it broadcasts against ``x``.

    Raises:
        ValueError: its shape is not that of the feature axes of ``x``.
    """
    if parameter is None:
        return None
    parameter = jnp.asarray(parameter)
    needed = feature_shape(x, feature_axes)
    if parameter.shape != needed:
        raise ValueError(
            f"{name} must have the shape of the feature axes; got {name} of shape {parameter.shape} "
            f"for x of shape {x.shape} with feature_axes={feature_axes}, which needs {needed}. "
            f"Check feature_axes (axis, in a module), or make {name} of shape {needed}."
        )
    return parameter.reshape([x.shape[i] if i in feature_axes else 1 for i in range(x.ndim)])
