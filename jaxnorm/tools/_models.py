"""A model as it is given to a tool, as the tools see it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import nnx

from ._intercept import LINEN_BATCH_NORMS, NNX_BATCH_NORMS
from ._linen_model import LinenModel
from ._model import Kinds, Model
from ._nnx_model import NnxModel

BATCH_NORMS: Kinds = (*LINEN_BATCH_NORMS, *NNX_BATCH_NORMS)


def call_model(model: Any, batch: Any) -> Any:
    """How a model is run if nobody says."""
    return model(batch)


def model_of(model: Any, variables: Any, rngs: Any = None, kinds: Kinds = BATCH_NORMS) -> Model:
    """``model`` as the tools see it, which watch its layers of these ``kinds``.

    Raises:
        ValueError: it is no model of Flax, or ``variables`` are missing, or they or ``rngs`` are
            given where the model holds its own.
    """
    if isinstance(model, nnx.Module):
        for name, given in (("variables", variables), ("rngs", rngs)):
            if given is not None:
                raise ValueError(
                    f"{name} belong to a Linen module; got them with an NNX model, {type(model).__name__}, "
                    f"which holds its own. Leave them out."
                )
        return NnxModel(model, kinds)
    check_model(model)
    if not isinstance(variables, Mapping) or not {"params", "batch_stats"} & set(variables):
        what = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f"variables must be those of the Linen module, in the collections it has; got {what}. "
            f'Give variables={{"params": ..., "batch_stats": ...}}, as init returns them.'
        )
    return LinenModel(model, variables, rngs, kinds)


def check_model(model: Any) -> None:
    """Whether ``model`` is one.

    Raises:
        ValueError: it is none of Flax.
    """
    if not isinstance(model, nn.Module | nnx.Module):
        raise ValueError(
            f"model must be a Linen module or an NNX model; got {type(model).__name__}. Give the module "
            f"itself, not its variables or its apply function."
        )
