"""Base class of the Linen wrappers that call a layer with a function of its weights."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax

from ..core.calling._explained import explaining_fields
from ..norms._shared._weight_recipe import WeightRecipe
from ._from_recipe import Derived
from ._wrapped import call_with, is_chosen


class FromWeightRecipe(Derived):
    """Turns the recipe of a wrapper, the other base class, into a module."""

    layer_instance: nn.Module
    """The layer or model to wrap."""
    _: dataclasses.KW_ONLY
    variable_filter: Iterable[str] | None = dataclasses.field(default_factory=lambda: {"kernel"})
    """Selects the weights to change, by strings in their paths. None or an empty filter selects all."""

    @nn.compact
    @explaining_fields
    def __call__(self, *args: Any, use_running_average: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with a function of each chosen weight instead of that weight.

        Args:
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If a field is invalid for the norm's function.
        """
        return call_with(
            self._instead_of, self.layer_instance, use_running_average, *args, **kwargs
        )

    @nn.nowrap
    def _instead_of(self, path: str, weight: jax.Array) -> jax.Array | None:
        assert isinstance(self, WeightRecipe)
        if not is_chosen(path, self.variable_filter):
            return None
        make_gain = self._gain(weight)
        gain = None if make_gain is None else self.param(f"{path}/gain", make_gain)
        return self._changed(weight, gain)
