"""Builds Linen layers again from their fields, some of them changed."""

import dataclasses
from typing import Any

import flax.linen as nn


def rebuilt(layer: nn.Module, kind: Any = None, **changed: Any) -> Any:
    """Builds a layer like ``layer``, without its parent, of another ``kind`` or with ``changed`` fields."""
    if kind is None:
        kind = called_class(layer)
    fields = [f.name for f in dataclasses.fields(kind) if f.init and f.name != "parent"]
    return kind(**{"parent": None, **{name: getattr(layer, name) for name in fields}, **changed})


def in_place_of(layer: nn.Module, kind: Any = None, **changed: Any) -> Any:
    """Returns a `rebuilt` layer to call instead of ``layer``, with the same variables."""
    return rebuilt(layer, kind, parent=place_of(layer), **changed)


def place_of(layer: nn.Module) -> Any:
    """Returns the parent of a layer that is called instead of ``layer``.

    Submodules of ``layer``, such as those that its ``setup`` makes, do not take their names there.
    """
    scope: Any = layer.scope
    return scope.rewound()


def called_class(layer: nn.Module) -> Any:
    """The class of ``layer``, or the class that `answering` derived it from."""
    return getattr(type(layer), "answering_for", type(layer))
