"""Recipes of the wrappers that call a layer with a function of its weights."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from ...core._axes import Axes, feature_shape
from ._recipe import Initializer


@dataclass(kw_only=True, eq=False)
class WeightRecipe:
    """A wrapper; it calls the layer with ``_changed(weight)`` instead of each chosen weight."""

    def _gain(self, weight: jax.Array) -> Callable[[jax.Array], jax.Array] | None:
        """Returns the function that makes the learned gain of ``weight`` from a key; None if it has none."""
        return None

    def _changed(self, weight: jax.Array, gain: jax.Array | None) -> jax.Array:
        """Returns the weight to call the layer with."""
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class Standardizing(WeightRecipe):
    """A wrapper that normalizes the weights of each output and can multiply them by learned gains."""

    epsilon: float
    """Added to the variance."""
    feature_axes: Axes = -1
    """Output axes of a weight, which are not reduced: -1 for Flax kernels."""
    dtype: DTypeLike | None = None
    """Dtype of the new weights; None means the dtype that weights and gains promote to."""
    param_dtype: DTypeLike = jnp.float32
    """Dtype of the gains."""
    use_gain: bool = False
    """Whether to multiply by learned gains."""
    gain_init: Initializer = initializers.ones
    """Initializer of the gains."""

    def _gain(self, weight: jax.Array) -> Callable[[jax.Array], jax.Array] | None:
        """A gain for each output."""
        if not self.use_gain:
            return None
        shape = feature_shape(weight, self.feature_axes)
        return lambda key: self.gain_init(key, shape, self.param_dtype)


def check_changed(changed: Collection[Any], parameters: Collection[str]) -> None:
    """Checks that a wrapper changes a parameter of its layer.

    Raises:
        ValueError: If it changes none.
    """
    if not changed:
        raise ValueError(
            f"the layer must have a parameter that this wrapper changes; got a layer whose parameters are "
            f"{', '.join(parameters) or 'none'}. Check variable_filter, or do not wrap the layer."
        )
