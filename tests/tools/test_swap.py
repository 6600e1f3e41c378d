"""`swap`: the model that would have been written with another norm."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.tools.models import (
    IMAGES,
    KEY,
    MLP,
    ROWS,
    NnxMLP,
    Reused,
    Subject,
    assert_same,
    linen,
    nnx_model,
    resnet20,
    small_cnn,
)


def swapped(subject: Subject, norm: Any, **options: Any) -> Subject:
    """The subject with another norm."""
    result = tools.swap(subject.model, norm, variables=subject.variables, **options)
    return subject.like(*result) if isinstance(result, tuple) else subject.like(result)


def structure(variables: Any) -> Any:
    """Shapes and dtypes."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "layer": ("layer", {}),
    "group": ("group", {"num_groups": 2}),
    "rms": ("rms", {"epsilon": 0.1}),
    "instance": ("instance", {}),
    "without bias": ("layer", {"use_bias": False}),
    "local_response": ("local_response", {"size": 3}),
    "none": ("none", {}),
    "batch": ("batch", {"momentum": 0.5}),
    "plain average": ("batch", {"momentum": None}),
    "untracked": ("batch", {"track_running_stats": False}),
    "half": ("layer", {"param_dtype": jnp.bfloat16}),
    "Flax's": (nn.GroupNorm, {"num_groups": 2}),
    "partial": (partial(nn.LayerNorm, use_bias=False), {"epsilon": 0.5}),
    "ours, partial": (jnl.get_norm("group", group_size=2), {"num_groups": None}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("old", [nn.BatchNorm, jnl.BatchNorm], ids=["Flax's", "ours"])
def test_as_written_with_that_norm(old: Any, way: str) -> None:
    """The same structure as a fresh init, and the outputs of the same parameters."""
    if old is nn.BatchNorm and way not in ("batch", "group", "plain average"):
        pytest.skip("fields are read alike")
    norm, options = WAYS[way]
    subject = linen(MLP(partial(old, epsilon=0.01)), ROWS)
    new = swapped(subject, norm, **options)
    constructor = jnl.get_norm(norm) if isinstance(norm, str) else norm
    fields = {"epsilon": 0.01, **options}
    if norm == "none" or norm == "local_response":
        fields.pop("epsilon")

    def ignoring(**more: Any) -> Any:
        made = constructor(**{**fields, **more})
        return made if hasattr(made, "track_running_stats") else Ignoring(made, **more)

    written = MLP(ignoring if isinstance(norm, str) is False else partial(constructor, **fields))
    if isinstance(norm, str):
        fresh = jax.eval_shape(written.init, KEY, ROWS, True)
        assert structure(new.variables) == structure(fresh)
        want = written.apply(new.variables, ROWS, True, mutable=["batch_stats"])
        got = new.model.apply(new.variables, ROWS, True, mutable=["batch_stats"])
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)
    fresh = jax.eval_shape(new.model.init, KEY, ROWS, True)
    assert structure(new.variables) == structure(fresh)


class Ignoring(nn.Module):
    """A norm that is told what only batch norm needs to know."""

    norm: Any
