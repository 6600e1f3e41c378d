"""Base class of the NNX wrappers that call a layer with a function of its weights."""

from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import jax
from flax import nnx

from ..core.calling._arguments import check_fields, own_fields
from ..core.calling._explained import explaining_fields
from ..norms._shared._weight_recipe import WeightRecipe
from ._from_recipe import Derived
from ._transformable import transformable
from ._variables import value_of
from ._wrapped import KERNELS, Path, call_with, one_for_each


@dataclass(eq=False)
class FromWeightRecipe(Derived):
    """Turns the recipe of a wrapper, the other base class, into a module.

    ``gains`` holds an `nnx.Param` for each chosen weight that has one, keyed by its path.
    """

    layer_instance: Any
    """The layer or model to wrap."""
    _: KW_ONLY
    variable_filter: nnx.filterlib.Filter = KERNELS
    """Selects the weights to change, by an NNX filter on path and variable. The default is the kernels."""
    rngs: InitVar[nnx.Rngs | None] = None
    """Random streams for the initializer of the gains; can be None without gains."""

    @explaining_fields
    def __post_init__(self, rngs: nnx.Rngs | None) -> None:
        assert isinstance(self, WeightRecipe)
        check_fields(own_fields(self))
        self._chosen = nnx.filterlib.to_predicate(self.variable_filter)

        def make(weight: jax.Array) -> jax.Array | None:
            make_gain = self._gain(weight)
            if make_gain is None:
                return None
            if rngs is None:
                raise ValueError(
                    "rngs must be given with use_gain=True; got None. Pass rngs=nnx.Rngs(0)."
                )
            return make_gain(rngs.params())

        self.gains: dict[Path, nnx.Param[jax.Array]] = one_for_each(
            self.layer_instance, self._chosen, make
        )

    @transformable
    def __call__(
        self, x: jax.Array, *args: Any, use_running_average: bool | None = None, **kwargs: Any
    ) -> Any:
        """Calls the layer with a function of each chosen weight instead of that weight.

        Args:
            x: first argument for the layer.
            *args: positional arguments for the layer.
            use_running_average: passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If a field is invalid for the norm's function.
        """
        return self._called(x, *args, use_running_average=use_running_average, **kwargs)

    @explaining_fields
    def _called(self, *args: Any, use_running_average: bool | None, **kwargs: Any) -> Any:
        return call_with(
            self._instead_of, self.layer_instance, use_running_average, *args, **kwargs
        )

    def _instead_of(self, path: Path, weight: nnx.Param) -> jax.Array | None:
        assert isinstance(self, WeightRecipe)
        if not self._chosen(path, weight):
            return None
        gain = self.gains.get(path)
        return self._changed(weight[...], value_of(gain))
