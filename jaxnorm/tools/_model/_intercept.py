"""Intercepts the calls of a model's layers, to observe them or to replace their results."""

import contextlib
import contextvars
import dataclasses
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
from ._flax_layers import LAYERS
from ._frozen import unfrozen_class
from ._norms import argument, running_norm, with_x_first, without_flag
from ._norms_call import call_norm, is_norms_call, norms_class, with_norms_call
from ._rebuilt import in_place_of
from ._types import Layer, NnxModelT

Watched: TypeAlias = Callable[[Layer], bool]
"""Whether the calls of a layer are intercepted."""

LINEN_BATCH_NORMS = (nn.BatchNorm, jnl.BatchNorm)
NNX_BATCH_NORMS = (nnx.BatchNorm, jnx.BatchNorm)
BATCH_NORMS = (*LINEN_BATCH_NORMS, *NNX_BATCH_NORMS)


class LayerCall(NamedTuple):
    """One call of a layer that is bound to its variables; of a norm, the call of the norm itself."""

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

    @property
    def mask(self) -> Any:
        """The mask given in the call, if any."""
        return argument(self.layer, self.args, self.kwargs, "mask")

    def evaluated(self, *, evaluating: bool, **fields: Any) -> Any:
        """The output with running statistics if ``evaluating``, else with those of the batch.

        ``fields`` of the layer change for this call. An NNX layer keeps them.
        """
        args, kwargs, _ = without_flag(self.layer, self.args, self.kwargs)
        known = {name: value for name, value in fields.items() if hasattr(self.layer, name)}
        if isinstance(self.layer, nn.Module):
            known["use_running_average"] = evaluating
            return call_norm(in_place_of(self.layer, **known), *args, **kwargs)
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
        own = norms_class(unfrozen_class(type(self.layer))).__call__
        return functools.partial(own, self.layer) if self.is_frozen else self.proceed

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


Watches: TypeAlias = Callable[[Layer, str], bool]
"""Whether the calls of a Linen layer, whose path is the second argument, are intercepted."""


@dataclasses.dataclass(eq=False)  # the same answer can be in use more than once
class _Asked:
    """An answer in use."""

    answer: Answer
    watches: Watches
    base: tuple[str, ...]  # the module that the paths of Linen layers start from

    def path(self, layer: nn.Module) -> str:
        """The path of a Linen layer."""
        inside = layer.path[: len(self.base)] == self.base
        return "/".join(layer.path[len(self.base) :] if inside else layer.path)


_asked: contextvars.ContextVar[tuple[_Asked, ...]] = contextvars.ContextVar("asked", default=())


@contextlib.contextmanager
def _asking(asked: tuple[_Asked, ...]) -> Iterator[None]:
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def _ask(asked: _Asked, call: LayerCall) -> Any:
    """Returns the answer. Calls that it makes are answered only by those that were in use before it."""
    before = _asked.get()
    with _asking(before[: before.index(asked)]):
        return asked.answer(call)


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


def is_asked(answer: Answer, base: tuple[str, ...]) -> bool:
    """Whether ``answer`` is already in use for the module at ``base``."""
    return any(asked.answer is answer and asked.base == base for asked in _asked.get())


def check_interceptable() -> None:
    """Validates that Flax runs interceptors when its layers are called.

    Raises:
        ValueError: If something has replaced their ``__call__``.
    """
    kinds = [kind for kind in (*BATCH_NORMS, *LAYERS) if issubclass(kind, nn.Module)]
    replaced = [kind for kind in kinds if not hasattr(kind.__call__, "method_handler_wrapped")]
    if replaced:
        raise ValueError(
            f"a module that a tool returned must intercept the calls of Flax's layers; got "
            f"{replaced[0].__name__} with a __call__ that is not Flax's, as within jax2onnx. Trace the "
            f"module first, as in jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(f)(x)), and convert the result."
        )


@contextlib.contextmanager
def watching(watches: Watches, answer: Answer, base: tuple[str, ...] = ()) -> Iterator[None]:
    """Within this context, ``answer`` decides what the Linen layers that ``watches`` accepts return.

    Paths are relative to the module at ``base``. The innermost such context is asked first.
    """

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if context.method_name != "__call__" or not is_norms_call(context):
            return call(*args, **kwargs)
        # Flax runs the interceptors in the opposite order. Each asks whoever comes next.
        for asked in reversed(_asked.get()):
            path = asked.path(layer)
            if asked.watches(layer, path):
                arguments = with_x_first(layer, args, kwargs)
                return _ask(asked, LayerCall(layer, path, call, *arguments))
        return call(*args, **kwargs)

    with _asking((*_asked.get(), _Asked(answer, watches, base))), nn.intercept_methods(watch):
        yield


def answered_by(answer: Answer) -> contextlib.AbstractContextManager[None]:
    """Within this context, ``answer`` decides what the layers of a `watched` NNX model return."""
    return _asking((*_asked.get(), _Asked(answer, lambda layer, path: False, ())))


def watched(model: NnxModelT, is_watched: Watched) -> NnxModelT:
    """Returns ``model``, with the same variables, and watches its NNX layers that ``is_watched`` accepts."""

    def watch(path: tuple[Any, ...], node: Any) -> Any:
        if is_watched(node):
            # The node is a copy: recursive_map passes nothing else.
            node.__class__ = _watched_class(type(node))
            node.watched_path = "/".join(map(str, path))
        return node

    return nnx.recursive_map(watch, model)


@functools.cache
def _watched_class(kind: type[nnx.Module]) -> type[nnx.Module]:
    def watched_call(base: Any) -> Callable[..., Any]:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not _asked.get():
                return base.__call__(self, *args, **kwargs)
            proceed = functools.partial(base.__call__, self)
            arguments = with_x_first(self, args, kwargs)
            return _ask(_asked.get()[-1], LayerCall(self, self.watched_path, proceed, *arguments))

        return __call__

    return with_norms_call(kind, kind.__name__, watched_call, watched_class=kind)
