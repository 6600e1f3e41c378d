"""Intercepts the calls of a model's layers, to observe them or to replace their results."""

import contextlib
import contextvars
import dataclasses
import fnmatch
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata

from ... import linen as jnl, nnx as jnx
from ...norms._shared._running_norm import RunningNorm
from ._norms import running_norm, with_x_first, without_flag
from ._types import Layer, NnxModelT

Where: TypeAlias = str | Callable[[str], bool]
"""Selects layers: a pattern of paths, like file names (``"stem/*"``), or a function of the path."""

Watched: TypeAlias = Callable[[Any], bool]
"""Whether the calls of a layer are intercepted."""

LINEN_BATCH_NORMS = (nn.BatchNorm, jnl.BatchNorm)
NNX_BATCH_NORMS = (nnx.BatchNorm, jnx.BatchNorm)
BATCH_NORMS = (*LINEN_BATCH_NORMS, *NNX_BATCH_NORMS)


class LayerCall(NamedTuple):
    """One call of a layer that is bound to its variables."""

    layer: Layer
    path: str  # such as "stem/BatchNorm_0"
    proceed: Callable[..., Any]  # calls the layer without interception
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def x(self) -> jax.Array:
        """The input of the layer."""
        return self.args[0]

    @property
    def norm(self) -> RunningNorm | None:
        """How the layer keeps running statistics, if it keeps any that change."""
        return running_norm(self.layer)

    @property
    def kind(self) -> str:
        """The name of the layer's class."""
        return type(self.layer).__name__

    @property
    def flag(self) -> bool | None:
        """The value of ``use_running_average`` in the call; None if it is not given."""
        return without_flag(self.layer, self.args, self.kwargs)[2]

    def evaluated(self, *, evaluating: bool, **fields: Any) -> Any:
        """The output with running statistics if ``evaluating``, else with those of the batch.

        ``fields`` of the layer change for this call. An NNX layer keeps them.
        """
        args, kwargs, _ = without_flag(self.layer, self.args, self.kwargs)
        known = {name: value for name, value in fields.items() if hasattr(self.layer, name)}
        if isinstance(self.layer, nn.Module):
            known["use_running_average"] = evaluating
            return self.layer.clone(parent=self.layer.scope, **known)(*args, **kwargs)
        for name, value in known.items():
            setattr(self.layer, name, value)
        return self.unfrozen(*args, use_running_average=evaluating, **kwargs)

    @property
    def is_frozen(self) -> bool:
        """Whether an NNX layer is frozen. A frozen Linen layer is called in evaluation mode instead."""
        return unfrozen_class(type(self.layer)) is not type(self.layer)

    @property
    def unfrozen(self) -> Callable[..., Any]:
        """`proceed` without the effect of `freeze`."""
        kind = unfrozen_class(type(self.layer))
        return functools.partial(kind.__call__, self.layer) if self.is_frozen else self.proceed

    def read(self, name: str) -> jax.Array:
        """Reads an array of the layer from ``batch_stats``."""
        if isinstance(self.layer, nn.Module):
            return self.layer.get_variable("batch_stats", name)
        return getattr(self.layer, name)[...]

    def write(self, name: str, value: jax.Array) -> None:
        """Replaces an array of the layer in ``batch_stats``."""
        if isinstance(self.layer, nn.Module):
            self.layer.put_variable("batch_stats", name, value)
        else:
            getattr(self.layer, name)[...] = value


Answer: TypeAlias = Callable[[LayerCall], Any]
"""A function that computes the result of a watched layer, instead of the layer itself."""

_answers: contextvars.ContextVar[tuple[Answer, ...]] = contextvars.ContextVar("answers", default=())


@contextlib.contextmanager
def answered_by(*answers: Answer) -> Iterator[None]:
    """Within this context, the last of ``answers`` decides what watched layers return.

    Calls that it makes are answered by the one before it, and so on; at the end, by the layer itself.
    """
    token = _answers.set(answers)
    try:
        yield
    finally:
        _answers.reset(token)


def answered_first_by(answer: Answer) -> contextlib.AbstractContextManager[None]:
    """`answered_by` with ``answer`` added to the current answers; it is asked first."""
    return answered_by(*_answers.get(), answer)


def _call(layer: Layer, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns what the current answer says for this call of ``layer``, or calls it if there is none."""
    match _answers.get():
        case (*others, answer):
            with answered_by(*others):
                return answer(LayerCall(layer, path, call, *with_x_first(layer, args, kwargs)))
        case _:
            return call(*args, **kwargs)


_numbers = itertools.count()


def new_number() -> int:
    """Returns a number that was not used before."""
    return next(_numbers)


def traced_for(number: int) -> contextlib.AbstractContextManager[None]:
    """Within this context, the model's own jitted functions are traced again, unless traced for this number.

    A trace made for another answer, or for none, does not contain this one. The number becomes part of
    JAX's cache key for traces.
    """
    return set_xla_metadata(jaxnorm_answer=str(number))


def watching(is_watched: Watched) -> contextlib.AbstractContextManager[Any]:
    """Watches the Linen layers that ``is_watched`` accepts and that are called within this context."""

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if context.method_name != "__call__" or not is_watched(layer):
            return call(*args, **kwargs)
        return _call(layer, "/".join(layer.path), call, *args, **kwargs)

    return nn.intercept_methods(watch)


def watched(model: NnxModelT, is_watched: Watched) -> NnxModelT:
    """Returns ``model``, with the same variables, and watches its NNX layers that ``is_watched`` accepts."""

    def watch(path: tuple[Any, ...], node: Any) -> Any:
        if is_watched(node):
            # The node is a copy: recursive_map passes nothing else.
            node.__class__ = _watched_class(type(node))
            node.watched_path = "/".join(map(str, path))
        return node

    return nnx.recursive_map(watch, model)


def rebuilt(layer: nn.Module, kind: Any = None, **changed: Any) -> Any:
    """Builds a layer like ``layer``, without its parent, of another ``kind`` or with ``changed`` fields."""
    if kind is None:
        kind = called_class(layer)
    fields = [f.name for f in dataclasses.fields(kind) if f.init and f.name != "parent"]
    return kind(**{"parent": None, **{name: getattr(layer, name) for name in fields}, **changed})


def called_class(layer: nn.Module) -> Any:
    """The class of ``layer``, or the class that `answering` derived it from."""
    return getattr(type(layer), "answering_for", type(layer))


def unfrozen_class(kind: type[nnx.Module]) -> type[nnx.Module]:
    """The class that a frozen class was made from, or ``kind`` itself."""
    return getattr(kind, "frozen_from", kind)


@functools.cache
def _watched_class(kind: type[nnx.Module]) -> type[nnx.Module]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(kind.__call__, self)
        return _call(self, self.watched_path, call, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": __call__, "watched_class": kind})


def matches(where: Where | None, path: str) -> bool:
    """Whether ``where`` selects the layer at ``path``; None selects all."""
    if where is None:
        return True
    return where(path) if callable(where) else fnmatch.fnmatchcase(path, where)


def select(where: Where | None, paths: list[str], kind: str) -> list[str]:
    """The ``paths`` that ``where`` selects.

    Raises:
        ValueError: If ``paths`` is empty, or ``where`` matches none of them.
    """
    if not paths:
        raise ValueError(
            f"there must be at least one {kind}; got a model without any. Linen layers are found through the "
            f"variables: pass the collections params and batch_stats as returned by init or training."
        )
    meant = [path for path in paths if matches(where, path)]
    if not meant:
        raise ValueError(
            f"where must match at least one {kind} in the model; got where={where!r}, but the model has: "
            f"{', '.join(paths) or 'none'}. Use a pattern such as 'stem/*', or omit where to select all."
        )
    return meant
