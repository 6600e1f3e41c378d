"""Which layers keep running statistics, and how: what the layers say, and what is known about Flax's."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import nnx

from ...norms._shared._flags import signature_of_call
from ...norms._shared._running_norm import RunningNorm
from ._norms_call import calls_norm, norms_class, says
from ._types import Layer

_KEPT = ("mean", "var")
_FLAG = "use_running_average"


def is_norm(layer: Layer) -> bool:
    """Whether ``layer`` says how it keeps running statistics, or holds arrays named like some."""
    return says(type(layer)) or holds_running_stats(layer)


def holds_running_stats(layer: Layer) -> bool:
    """Whether ``layer`` itself holds arrays named like running statistics."""
    return bool(_held(layer))


def running_norm(layer: Layer) -> RunningNorm | None:
    """How ``layer`` keeps running statistics; None if it keeps none that change, or if that is not known."""
    kind = type(layer)
    if not says(kind) or not calls_norm(kind):
        return None
    if hasattr(kind, "running_norm"):
        return layer.running_norm()
    return RunningNorm(layer.axis, layer.epsilon, layer.momentum)


def against(layer: Layer) -> str | None:
    """The reason why no tool supports ``layer``: how it keeps running statistics is not known."""
    kind = type(layer)
    if not calls_norm(kind):
        return (
            "it overrides __call__ without calling super().__call__ in it, and has no method running_norm of "
            "its own (see tools.RunningNorm)"
        )
    if says(kind) or not _held(layer):
        return None
    return f"it holds {' and '.join(_held(layer))} but has no method running_norm (see tools.RunningNorm)"


def refused(tool: str, supported: str, reasons: Mapping[str, str], kinds: Mapping[str, str]) -> str:
    """The message for layers, by path, that a tool does not support, with the reasons and the classes."""
    found = "; ".join(f"{kinds[path]} at {path!r}, but {why}" for path, why in reasons.items())
    return (
        f"tools.{tool} supports {supported}; got {found}. Exclude such layers with where if the tool has it, "
        f"or replace them in the model."
    )


def without_flag(
    layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments of a call of ``layer`` without ``use_running_average``, and its value, None if not given."""
    names, kept = _names(layer), dict(kwargs)
    flag = kept.pop(_FLAG, None)
    at = names.index(_FLAG) if _FLAG in names else len(args)
    if at < len(args):
        flag = args[at]
        # What follows the flag has a name, because its place moves.
        kept |= dict(zip(names[at + 1 :], args[at + 1 :], strict=False))
    return args[:at], kept, flag


def with_x_first(
    layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Arguments of a call of ``layer``, with the first one by position, also if it was given by name."""
    first = _names(layer)[:1]
    if args or not first or first[0] not in kwargs:
        return args, kwargs
    return (kwargs[first[0]],), {name: value for name, value in kwargs.items() if name != first[0]}


def argument(layer: Layer, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    """The argument ``name`` of a call of ``layer``, by name or by position; None if it is not given."""
    by_position = dict(zip(_names(layer), args, strict=False))
    return {**by_position, **kwargs}.get(name)


def _names(layer: Layer) -> list[str]:
    """The names of the parameters of the norm's ``__call__``, without self."""
    return list(signature_of_call(norms_class(class_of(layer))).parameters)[1:]


def class_of(layer: Layer) -> Any:
    """The class of ``layer``, or the one that the class of a watched NNX layer was derived from."""
    return getattr(type(layer), "watched_class", type(layer))


def _held(layer: Layer) -> list[str]:
    """The names of running statistics among the arrays that ``layer`` itself holds."""
    if isinstance(layer, nnx.Module):
        return [name for name in _KEPT if isinstance(getattr(layer, name, None), nnx.BatchStat)]
    if not isinstance(layer, nn.Module) or layer.scope is None:
        return []
    return [name for name in _KEPT if _is_array(layer.get_variable("batch_stats", name))]


def _is_array(held: Any) -> bool:
    return held is not None and not isinstance(held, Mapping)  # a child's arrays
