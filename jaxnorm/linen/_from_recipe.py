"""Base classes of the Linen modules for norms that Flax does not have."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..core._axes import feature_shape
from ..core.calling._explained import explaining_fields
from ..norms._shared._recipe import Call, Recipe, Running, Shared, Tracked
from ..norms._shared._weight_recipe import WeightRecipe
from ._variables import Checked, devices_of, is_evaluating


class Derived(Checked):
    """A module with the docstring of its recipe, the other base class."""

    def __init_subclass__(cls, **options: Any) -> None:
        recipes = (base for base in cls.__bases__ if issubclass(base, Recipe | WeightRecipe))
        cls.__doc__ = cls.__doc__ or next(recipes, cls).__doc__
        super().__init_subclass__(**options)


class FromRecipe(Derived):
    """Turns a recipe, the other base class, into a module."""

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> jax.Array:
        """Normalizes ``x`` and, in training, updates the collection ``batch_stats`` if there is one.

        Args:
            x: activations.
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: True for evaluation, False for training; set it here or in the module, not in
                both. Norms without running statistics ignore it.

        Returns:
            The output of the norm's function, without the updated state.

        Raises:
            ValueError: If the norm has running statistics and ``use_running_average`` is set in both the
                module and the call or in neither, or if an argument is invalid for the norm's function.
        """
        return self._called(x, None, mask, use_running_average)

    @nn.compact
    @explaining_fields
    def _called(
        self, x: jax.Array, condition: Any, mask: jax.Array | None, use_running_average: bool | None
    ) -> Any:
        assert isinstance(self, Recipe)
        x = jnp.asarray(x)
        shape = feature_shape(x, self.feature_axes)
        parameters = {
            name: self.param(name, parameter.init, parameter.shape, self.param_dtype)
            for name, parameter in self._parameters(shape).items()
        }
        evaluating = self._is_evaluating(use_running_average)
        initial = self._initial_state(shape, x.dtype)
        if evaluating and isinstance(self, Tracked) and not self.is_initializing():
            initial.pop("count", None)  # only training reads it, so a checkpoint may lack it
        kept = {
            name: self.variable("batch_stats", name, lambda value: value, value)
            for name, value in initial.items()
        }
        call = Call(
            condition,
            mask,
            evaluating=evaluating,
            devices=devices_of(self) if isinstance(self, Shared) else {},
        )
        state = {name: variable.value for name, variable in kept.items()}
        y, updated = self._normalized(x, {**parameters, **state}, call)
        if not self.is_initializing():  # init is not a training step
            for name, value in updated.items():
                kept[name].value = value
        return y

    @nn.nowrap
    def _is_evaluating(self, asked: bool | None) -> bool:
        if not isinstance(self, Running):
            return asked is not False
        return is_evaluating(self, asked)


class FromConditionedRecipe(FromRecipe):
    """`FromRecipe` for recipes that take a second input after x."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: jax.Array,
        condition: Any,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> Any:
        """Normalizes ``x`` and, in training, updates the collection ``batch_stats`` if there is one.

        Args:
            x: activations.
            condition: the second input of this norm, such as labels, a style or a map.
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: True for evaluation, False for training; set it here or in the module, not in
                both. Norms without running statistics ignore it.

        Returns:
            The output of the norm's function, without the updated state.

        Raises:
            ValueError: If the norm has running statistics and ``use_running_average`` is set in both the
                module and the call or in neither, or if an argument is invalid for the norm's function.
        """
        return self._called(x, condition, mask, use_running_average)
