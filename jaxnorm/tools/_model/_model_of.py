"""Wraps a model that is passed to a tool, in the form that the tools use."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import nnx

from ...norms._shared._flags import signature_of_call
from ._intercept import Watched
from ._interface import Model
from ._linen import LinenModel
from ._nnx import NnxModel
from ._norms import class_of, is_norm
from ._types import AnyModel, Batch, Rngs, Tree

# The values for evaluation of the flags that models usually take.
_FLAGS: dict[str, bool] = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


def call_model(model: AnyModel, batch: Batch) -> Any:
    """Calls the model on a batch, in evaluation mode if it asks for a flag: the default for ``run``.

    Raises:
        ValueError: If the model asks for more than a batch and such a flag.
    """
    signature = signature_of_call(class_of(model))
    needed = [
        p.name
        for p in list(signature.parameters.values())[2:]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not _FLAGS.keys() >= set(needed):
        raise ValueError(
            f"run must be given for a model that takes more than a batch and a flag; got "
            f"{class_of(model).__name__}.__call__{signature}. Say how to call it, as in "
            f"run=lambda model, batch: model({', '.join(['batch', *(f'{n}=...' for n in needed)])})."
        )
    return model(batch, **{name: _FLAGS[name] for name in needed})


def model_of(
    model: AnyModel,
    variables: Tree,
    rngs: Rngs | None = None,
    is_watched: Watched = is_norm,
    *,
    evaluates: bool = False,
) -> Model:
    """Wraps ``model`` in the form that the tools use, with some of its layers watched.

    If it ``evaluates``, its running statistics cannot change. Some Linen models ask for that.

    Raises:
        ValueError: If ``model`` is not a Flax model, ``variables`` are missing, or ``variables`` or ``rngs``
            are given with an NNX model.
    """
    if isinstance(model, nnx.Module):
        for name, given in (("variables", variables), ("rngs", rngs)):
            if given is not None:
                raise ValueError(
                    f"{name} belong to a Linen module; got them with an NNX model, {type(model).__name__}, "
                    f"which holds its own. Leave them out."
                )
        return NnxModel(model, is_watched)
    check_model(model)
    if not isinstance(variables, Mapping) or not {"params", "batch_stats"} & set(variables):
        what = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f"variables must be those of the Linen module, by collection; got {what}. "
            f'Pass variables={{"params": ..., "batch_stats": ...}}, as returned by init.'
        )
    return LinenModel(model, variables, rngs, is_watched, evaluates=evaluates)


def check_model(model: AnyModel) -> None:
    """Validates that ``model`` is a Flax model.

    Raises:
        ValueError: If it is neither a Linen module nor an NNX model.
    """
    if not isinstance(model, nn.Module | nnx.Module):
        raise ValueError(
            f"model must be a Linen module or an NNX model; got {type(model).__name__}. Pass the module "
            f"itself, not its variables or its apply function."
        )
