"""Linen modules of the norms that Flax does not have."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..core._axes import feature_shape
from ..core._explained import explaining_fields
from ..norms._recipe import Call, Recipe, Shared, Tracked
from ._variables import Checked, devices_of, is_evaluating


class FromRecipe(Checked):
    """A module of the recipe that is its other base class."""

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> Any:
        """Normalizes ``x``, and in training updates the collection ``batch_stats`` if it has any.

        Args:
            x: activations.
            mask: True counts; broadcastable to ``x``.
            use_running_average: evaluation (True) or training (False), if the module does not say; norms
                without running statistics ignore it.

        Returns:
            What the function returns, without the state.

        Raises:
            ValueError: ``use_running_average`` is given twice or not at all where it is needed, or anything
                that the function refuses.
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
            for name, parameter in self.parameters(shape).items()
        }
        kept = {
            name: self.variable("batch_stats", name, lambda value: value, value)
            for name, value in self.state(shape, x.dtype).items()
        }
        call = Call(
            condition,
            mask,
            evaluating=self._is_evaluating(use_running_average),
            devices=devices_of(self) if isinstance(self, Shared) else {},
        )
        state = {name: variable.value for name, variable in kept.items()}
        y, updated = self.normalized(x, {**parameters, **state}, call)
        if not self.is_initializing():  # which is no step
            for name, value in updated.items():
                kept[name].value = value
        return y

    @nn.nowrap
    def _is_evaluating(self, asked: bool | None) -> bool:
        if not isinstance(self, Tracked):
            return asked is not False
        return is_evaluating(self, asked)


class FromConditionedRecipe(FromRecipe):
    """The same of a recipe that is called with something after x."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: jax.Array,
        condition: Any,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> Any:
        """Normalizes ``x``, and in training updates the collection ``batch_stats`` if it has any.

        Args:
            x: activations.
            condition: what else this norm is called with.
            mask: True counts; broadcastable to ``x``.
            use_running_average: evaluation (True) or training (False), if the module does not say; norms
                without running statistics ignore it.

        Returns:
            What the function returns, without the state.

        Raises:
            ValueError: ``use_running_average`` is given twice or not at all where it is needed, or anything
                that the function refuses.
        """
        return self._called(x, condition, mask, use_running_average)
