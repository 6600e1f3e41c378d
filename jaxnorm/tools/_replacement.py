"""A norm that replaces batch norms, with the options that carry over from each of them."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import numpy as np
from jax.core import Tracer

from .. import linen as jnl, nnx as jnx
from ..core._running import RunningStats
from ..linen._get_norm import NoNorm as LinenNoNorm
from ..nnx._get_norm import NoNorm as NnxNoNorm
from ..norms._registry import NormName
from ._model._intercept import BATCH_NORMS
from ._model._types import Layer

Constructor: TypeAlias = Callable[..., Any]

# Options that mean the same in every norm. Those for devices and momentum do so only in batch norms.
_CARRIED = (
    *("epsilon", "dtype", "param_dtype", "use_bias", "use_scale", "bias_init", "scale_init"),
    *("activation", "use_running_average"),
)
_CARRIED_BY_BATCH_NORM = (
    *("axis", "momentum", "axis_name", "axis_index_groups", "unbiased"),
    *("track_running_stats", "virtual_batch_size", "save_as"),
)
# What a batch norm holds.
VARIABLES = ("scale", "bias", *RunningStats._fields)
_FROZEN = (jnl.FrozenBatchNorm, jnx.FrozenBatchNorm)
_OF_ANY_AXES = (LinenNoNorm, NnxNoNorm)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """A norm that is constructed to replace batch norms."""

    constructor: type[Any]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(
        cls,
        get_norm: Constructor,
        name: NormName | str | Constructor,
        options: Mapping[str, Any],
        system: type,
    ) -> "Replacement":
        """Makes a replacement from a name or constructor, and ``options`` that it accepts.

        Raises:
            ValueError: If it is not a norm of activations of this module system, or an option for Linen
                has no hash.
        """
        norm: Any = get_norm(name, **options) if isinstance(name, str) else name
        while isinstance(norm, functools.partial):
            norm, options = norm.func, {**norm.keywords, **options}
        options = {name: _without_lists(option) for name, option in options.items()}
        if issubclass(system, nn.Module):
            options = {name: _hashable(name, option) for name, option in options.items()}
        made = cls(norm, tuple((name, options[name]) for name in sorted(options)))
        if (
            not isinstance(norm, type)
            or not issubclass(norm, system)
            or made.knows("layer_instance")
        ):
            raise ValueError(
                f"norm must be the name or the class of a norm of activations, in "
                f"flax.{system.__module__.split('.')[1]} like the model; got {name!r}. Pass its arguments as "
                f"options, as in norm=GroupNorm, num_groups=8."
            )
        inspect.signature(norm.__init__).bind_partial(norm, **options)
        return made

    def knows(self, name: str) -> bool:
        """Whether the norm has an argument of this name."""
        return name in self._arguments

    @property
    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        init: Any = self.constructor.__init__  # NNX classes themselves have no signature
        return inspect.signature(init).parameters

    @property
    def is_batch_norm(self) -> bool:
        """Whether options for devices and running statistics mean the same as in a batch norm."""
        return issubclass(self.constructor, BATCH_NORMS)

    def takes_over(self, variable: str) -> bool:
        """Whether the norm, if it has this variable, computes the same with it as a batch norm does."""
        of_batch_norm = issubclass(self.constructor, (*BATCH_NORMS, *_FROZEN))
        return of_batch_norm or (variable in ("scale", "bias") and self.knows(f"use_{variable}"))

    def cast(self, variable: str, array: Any) -> Any:
        """The array of this variable, in the dtype that the options ask for."""
        dtype = dict(self.options).get("param_dtype")
        if not dtype or variable not in ("scale", "bias"):
            return array
        return jax.tree.map(lambda leaf: leaf.astype(dtype), array)  # it may be in a box

    def like(self, layer: Layer, path: str, *args: Any, **more: Any) -> Any:
        """Constructs the norm, with the options that carry over from the batch norm ``layer``.

        Raises:
            ValueError: If it does not support an option of the batch norm.
        """
        names = (*_CARRIED, *_CARRIED_BY_BATCH_NORM) if self.is_batch_norm else _CARRIED
        carried = {n: getattr(layer, n) for n in names if self.knows(n) and hasattr(layer, n)}
        if carried.get("virtual_batch_size", 0) is None:
            del carried["virtual_batch_size"]  # not set: a ghost batch norm has a default
        if not self.is_batch_norm:
            for name in ("feature_axes", "reduction_axes"):
                # A default of -1 is the feature axis; None is all axes except the examples.
                if (
                    self.knows("feature_axes")
                    and self.knows(name)
                    and self._arguments[name].default == -1
                ):
                    carried[name] = layer.axis
        self._check(layer, path)
        return self.constructor(*args, **{**carried, **dict(self.options), **more})

    def _check(self, layer: Layer, path: str) -> None:
        lost = [
            n for n in ("activation", "save_as") if getattr(layer, n, None) and not self.knows(n)
        ]
        if lost:
            raise ValueError(
                f"the replacement for a batch norm must support all its options; got {path!r} with "
                f"{lost[0]}={getattr(layer, lost[0])!r}, which {self.constructor.__name__} does not support. "
                f"Apply it after the norm in the model, or exclude this layer with where."
            )
        if issubclass(self.constructor, _FROZEN) and not getattr(
            layer, "track_running_stats", True
        ):
            raise ValueError(
                f"{self.constructor.__name__} needs the running statistics of the batch norm; got {path!r} "
                f"with track_running_stats=False. Exclude this layer with where."
            )
        takes_axes = self.knows("feature_axes") or self.is_batch_norm
        if (
            layer.axis not in (-1, (-1,))
            and not takes_axes
            and self.constructor not in _OF_ANY_AXES
        ):
            raise ValueError(
                f"{self.constructor.__name__} takes the last axis as the feature axis; got {path!r} with "
                f"axis={layer.axis}. Move the features to the last axis in the model, or exclude this layer "
                f"with where."
            )


def _without_lists(option: Any) -> Any:
    return tuple(map(_without_lists, option)) if isinstance(option, list | tuple) else option


def _hashable(name: str, option: Any) -> Any:
    """The option as a field of a Linen module, which has a hash: an array of one number is that number.

    Raises:
        ValueError: If it has no hash.
    """
    is_array = isinstance(option, jax.Array | np.ndarray) and not isinstance(option, Tracer)
    if is_array and option.shape == ():
        return option.item()
    try:
        hash(option)
    except TypeError:
        raise ValueError(
            f"options for a Linen norm must have a hash, as all fields of Linen modules; got "
            f"{name}={option!r}. Pass numbers, strings or tuples."
        ) from None
    return option
