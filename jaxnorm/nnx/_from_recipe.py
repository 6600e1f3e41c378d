"""Base classes of the NNX modules for norms that Flax does not have."""

from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
from flax import nnx

from ..core.calling._arguments import check_fields, own_fields
from ..core.calling._explained import explaining_fields
from ..norms._shared._recipe import Call, Recipe, Running, Shared
from ..norms._shared._weight_recipe import WeightRecipe
from ._transformable import transformable
from ._variables import Features, is_evaluating, parameter, shape_of, store, value_of


@dataclass_transform(eq_default=False)
class Derived(nnx.Module):
    """A dataclass with the docstring of its recipe, the other base class."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        recipes = [base for base in cls.__bases__ if issubclass(base, Recipe | WeightRecipe)]
        # Only the class that adds this one to its recipe is a dataclass; users' subclasses are ordinary.
        if recipes and not issubclass(recipes[0], Derived):
            cls.__doc__ = cls.__doc__ or recipes[0].__doc__
            dataclass(eq=False)(cls)


@dataclass(eq=False)
class FromRecipe(Derived):
    """Turns a recipe, the other base class, into a module."""

    num_features: Features
    """The feature shape: one size, or a sequence with one size per axis in ``feature_axes``."""
    _: KW_ONLY
    rngs: InitVar[nnx.Rngs]

    @explaining_fields
    def __post_init__(self, rngs: nnx.Rngs) -> None:
        assert isinstance(self, Recipe)
        check_fields(own_fields(self))
        shape = shape_of(self.num_features)
        for name, made in self._parameters(shape).items():
            setattr(
                self, name, parameter(True, made.init, made.shape, self.param_dtype, rngs, None)
            )
        for name, value in self._initial_state(shape, self.param_dtype).items():
            setattr(self, name, nnx.BatchStat(value))

    @transformable
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> jax.Array:
        """Normalizes ``x`` and, in training, updates the running statistics if there are any.

        Args:
            x: activations.
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: True for evaluation, False for training; overrides the module's setting.
                Norms without running statistics ignore it.

        Returns:
            The output of the norm's function, without the updated state.

        Raises:
            ValueError: If the norm has running statistics and ``use_running_average`` is None in both the
                module and the call, or if an argument is invalid for the norm's function.
        """
        return self._called(x, None, mask, use_running_average)

    @explaining_fields
    def _called(
        self, x: jax.Array, condition: Any, mask: jax.Array | None, use_running_average: bool | None
    ) -> Any:
        assert isinstance(self, Recipe)
        shape = shape_of(self.num_features)
        names = [*self._parameters(shape), *self._initial_state(shape, self.param_dtype)]
        variables = {name: value_of(getattr(self, name)) for name in names}
        if isinstance(self, Running):
            evaluating = is_evaluating(self, use_running_average)
        else:
            evaluating = use_running_average is not False
        devices = {}
        if isinstance(self, Shared):
            devices = {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}
        call = Call(condition, mask, evaluating, devices)
        y, updated = self._normalized(jnp.asarray(x), variables, call)
        for name, value in updated.items():
            store(getattr(self, name), value)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets ``use_running_average``; called by `nnx.view`.

        Args:
            use_running_average: True for evaluation, False for training; None leaves the setting unchanged.
        """
        if use_running_average is not None and isinstance(self, Running):
            self.use_running_average = use_running_average


@dataclass(kw_only=True, eq=False)
class Training:
    """Mixin for norms with running statistics; they start in training mode, like `flax.nnx.BatchNorm`."""

    use_running_average: bool | None = False
    """True for evaluation, False for training; the call can override it."""


@dataclass(eq=False)
class WithoutVariables:
    """Mixin for norms without variables, which do not need the sizes of features or random numbers."""

    num_features: Features = ()
    """Ignored; accepted so that this layer can replace other norms."""
    _: KW_ONLY
    rngs: InitVar[Any] = None
    """Ignored; accepted for the same reason."""


class FromConditionedRecipe(FromRecipe):
    """`FromRecipe` for recipes that take a second input after x."""

    @transformable
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: jax.Array,
        condition: Any,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> Any:
        """Normalizes ``x`` and, in training, updates the running statistics if there are any.

        Args:
            x: activations.
            condition: the second input of this norm, such as labels, a style or a map.
            mask: True for the elements to include; broadcastable to ``x``.
            use_running_average: True for evaluation, False for training; overrides the module's setting.
                Norms without running statistics ignore it.

        Returns:
            The output of the norm's function, without the updated state.

        Raises:
            ValueError: If the norm has running statistics and ``use_running_average`` is None in both the
                module and the call, or if an argument is invalid for the norm's function.
        """
        return self._called(x, condition, mask, use_running_average)
