"""Every NNX module in a model: compared, copied, saved and restored."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx

from tests.modules import assert_close, called, moved, normal
from tests.nnx.models import MODELS, forward, model_of, numbers

X = normal((4, 5, 6))
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_equal_models_are_one_program(name: str) -> None:
    """The graph definitions of two equal models are equal and hash alike, so nothing is traced twice."""
    first, second = nnx.graphdef(model_of(name)), nnx.graphdef(model_of(name, 1))
    assert first == second and hash(first) == hash(second)
    traced = []

    def run(model: Any, x: jax.Array) -> Any:
        traced.append(name)
        return model(x)

    answers = [called(model_of(name, seed), run, X) for seed in (0, 1)]
    assert len(traced) == 1 and not np.array_equal(*answers)


@every_model
def test_copies(name: str) -> None:
    """Results of `copy.deepcopy` and `nnx.clone` are equal models with separate state."""
    model = model_of(name)
    start, answers = numbers(model), []
    for copied in (copy.deepcopy(model), nnx.clone(model)):
        answers.append(called(copied, forward, X))
        assert moved(start, numbers(model)) == set()
    for y in answers:
        assert_close(y, answers[0], 0.0)
    assert_close(called(model, forward, X), answers[0], 0.0)


@every_model
def test_shapes_without_values(name: str) -> None:
    """`nnx.eval_shape` of the constructor gives a model without arrays, which a state can then fill."""
    model = model_of(name)
    abstract = nnx.eval_shape(lambda: model_of(name, 1))
    assert all(isinstance(v, jax.ShapeDtypeStruct) for v in jax.tree.leaves(nnx.state(abstract)))
    nnx.update(abstract, nnx.state(model))
    assert_close(called(abstract, forward, X), called(model, forward, X), 1e-6)


@every_model
def test_a_checkpoint_by_orbax(name: str) -> None:
    """A model saved after a step can be restored into a fresh one, as in Flax's guide."""
    model, other = model_of(name), model_of(name, 1)
    called(model, forward, X)
    keep = nnx.Not(nnx.RngState)
    with tempfile.TemporaryDirectory() as folder, orbax.checkpoint.StandardCheckpointer() as files:
        files.save(Path(folder, "saved"), nnx.state(model, keep))
        files.wait_until_finished()
        nnx.update(other, files.restore(Path(folder, "saved"), nnx.state(other, keep)))
    assert moved(numbers(model, keep), numbers(other, keep)) == set()
    for either in (model, other):
        either.eval()
    assert_close(called(other, forward, X), called(model, forward, X), 0.0)
