"""The classes of frozen layers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx
from jax import lax

from ._norms import without_flag
from ._norms_call import with_norms_call


def unfrozen_class(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The class that a frozen class was made from, or ``kind`` itself."""
    return getattr(kind, "frozen_from", kind)


def affine_is_frozen(kind: type) -> bool:
    """Whether a Linen or NNX class is frozen together with its scale and bias."""
    return getattr(kind, "affine_is_frozen", False)


def keep_frozen(new: nnx.Module, old: nnx.Module) -> None:
    """Freezes ``new`` if ``old``, which it replaces, is frozen."""
    kind = type(old)
    if unfrozen_class(kind) is not kind:
        new.__class__ = frozen_class(type(new), affine_is_frozen(kind))


@functools.cache
def without_gradients(kind: type[nn.Module]) -> type[nn.Module]:
    """A Linen class like ``kind`` whose parameters have no gradients."""

    def param(self: Any, name: str, *args: Any, **options: Any) -> Any:
        return lax.stop_gradient(kind.param(self, name, *args, **options))

    about = {"affine_is_frozen": True, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), {"param": param, **about})


@functools.cache
def frozen_class(kind: type[nnx.Module], affine: bool) -> type[nnx.Module]:
    """An NNX class like ``kind`` that always evaluates; with ``affine``, its parameters have no gradients."""

    def evaluating_call(base: Any) -> Callable[..., Any]:
        @functools.wraps(base.__call__)
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            args, kwargs, _ = without_flag(self, args, kwargs)
            if affine:
                graph, state = nnx.split(self)
                self = nnx.merge(graph, lax.stop_gradient(state))
            return base.__call__(self, *args, use_running_average=True, **kwargs)

        return __call__

    def __reduce__(self: Any) -> Any:
        return _new_frozen, (kind, affine), self.__getstate__()

    about: dict[str, Any] = {
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        "frozen_from": kind,
        "affine_is_frozen": affine,
        "__reduce__": __reduce__,
    }
    return with_norms_call(kind, f"Frozen{kind.__name__}", evaluating_call, **about)


def _new_frozen(kind: type[nnx.Module], affine: bool) -> Any:
    """Creates the object that unpickling starts from."""
    made = frozen_class(kind, affine)
    return made.__new__(made)
