"""How tools call a model without ``run``."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx, tools

X = np.random.default_rng(0).normal(2, 3, (8, 4)).astype(np.float32)
KEY = jax.random.key(0)


class Model(nn.Module):
    """A dense layer and a norm."""

    def normalized(self, x: Any, evaluating: bool) -> Any:
        """The norm of the dense layer."""
        return jnl.BatchNorm(evaluating, name="norm")(nn.Dense(4, name="dense")(x))


class Train(Model):
    """Takes ``train`` by position."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Normalizes."""
        return self.normalized(x, not train)


class IsTraining(Model):
    """Takes ``is_training`` by name."""

    @nn.compact
    def __call__(self, x: Any, *, is_training: bool) -> Any:
        """Normalizes."""
        return self.normalized(x, not is_training)


class Both(Model):
    """Takes two flags, and an option with a default."""

    @nn.compact
    def __call__(
        self, x: Any, deterministic: bool, use_running_average: bool, scale: float = 1.0
    ) -> Any:
        """Normalizes."""
        assert deterministic
        return scale * self.normalized(x, use_running_average)


class OfNnx(nnx.Module):
    """Takes ``training``."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.dense, self.norm = nnx.Linear(4, 4, rngs=rngs), jnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: Any, training: bool) -> Any:
        """Normalizes."""
        return self.norm(self.dense(x), use_running_average=not training)


@pytest.mark.parametrize("model", [Train(), IsTraining(), Both(), OfNnx()])
def test_models_that_ask_for_a_flag_are_evaluated(model: Any) -> None:
    """Usual flags get their values for evaluation, in every tool with ``run``."""
    given: dict[str, Any] = {}
    if isinstance(model, nn.Module):
        flags: dict[Any, Any] = {Train: {"train": True}, IsTraining: {"is_training": True}}
        both: Any = {"deterministic": True, "use_running_average": False}
        given = {"variables": model.init(KEY, X, **flags.get(type(model), both))}
    assert list(tools.examine(model, X, **given).layers) == ["norm"]
    folded = tools.fold(model, X, **given)  # only what evaluates folds
    assert folded.pairs == {"norm": "dense"} and folded.difference < 1e-5
    done: Any = tools.recalibrate(model, [X], **given)
    mean: Any = done["batch_stats"]["norm"]["mean"] if given else done.norm.mean[...]
    assert np.abs(mean).max() > 0.1  # of the data, no longer 0
