"""Tools applied to the results of other tools, and to models that become a part of a larger model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx, tools
from tests.selecting import thorough_but
from tests.tools.models import KEY, MLP, ROWS, NnxMLP, Subject, linen, nnx_model

SYSTEMS: dict[str, Callable[[], Subject]] = {
    "Linen": lambda: linen(MLP(jnl.BatchNorm), ROWS),
    "Linen, Flax's": lambda: linen(MLP(nn.BatchNorm), ROWS),
    "NNX": lambda: nnx_model(NnxMLP(jnx.BatchNorm)),
    "NNX, Flax's": lambda: nnx_model(NnxMLP(nnx.BatchNorm)),
}
TOOLS = ("freeze", "freeze one", "unfreeze", "swap", "swap one", "fold", "fold one")
TOOLS += ("recalibrate", "examine", "accumulate")
# After these, no norm, or no norm called "second", has running statistics.
WITHOUT_NORMS, WITHOUT_SECOND = {"fold"}, {"swap one", "fold one"}
NEEDS_NORMS = {*TOOLS} - {"unfreeze"}
NEEDS_SECOND = {"freeze one", "swap one", "fold one"}


def evaluate(model: Any, x: Any) -> Any:
    """Runs a model in evaluation; Flax's norms take no mask."""
    return model(x, False)


def used(name: str, subject: Subject) -> Subject:
    """The subject after the tool called ``name``."""
    model, options = subject.model, {"variables": subject.variables}
    where = {"where": "second"} if name.endswith("one") else {}
    match name.removesuffix(" one"):
        case "freeze":
            return subject.like(tools.freeze(model, **where, **options))
        case "unfreeze":
            return subject.like(tools.unfreeze(model))
        case "swap":
            to = "layer" if where else "batch"
            found: Any = tools.swap(model, to, **where, **options)
            return subject.like(*(found if isinstance(found, tuple) else (found,)))
        case "fold":
            folded = tools.fold(model, subject.x, run=evaluate, **where, **options)
            return subject.like(folded.model, folded.variables)
        case "recalibrate":
            run = subject.train
            return subject.like(tools.recalibrate(model, [subject.x], run=run, **options))
        case "examine":
            assert tools.examine(model, subject.x, run=evaluate, **options).layers
            return subject
        case _:

            def loss(model: Any, x: Any) -> Any:
                return model(x, True).sum()

            tools.accumulate(loss, model, subject.x, micro_batches=2, **options)
            return subject


@pytest.mark.sampled
@pytest.mark.parametrize("first", thorough_but(TOOLS, *TOOLS[::3]))
@pytest.mark.parametrize("system", thorough_but(SYSTEMS, "Linen", "NNX, Flax's"))
def test_every_tool_after_every_other(system: str, first: str) -> None:
    """The second tool does what it does to any model, and what the first one did stays."""
    one = used(first, SYSTEMS[system]())
    y = one.output()
    for second in TOOLS:
        missing = first in WITHOUT_NORMS and second in NEEDS_NORMS
        missing |= first in WITHOUT_SECOND and second in NEEDS_SECOND
        if missing:
            with pytest.raises(ValueError, match=r"must (match|call|be) at least one|at least one"):
                used(second, one)
            continue
        two = used(second, one)
        if second not in ("swap one", "recalibrate"):
            np.testing.assert_allclose(two.output(), y, rtol=1e-4, atol=1e-5, err_msg=second)
        before, after = two.stats, two.step(3 * two.x)[1].stats
        moved = {path.split("/")[-2] for path in after if (after[path] != before[path]).any()}
        frozen: set[str] = set()
        for name in (first, second):
            if name == "unfreeze":
                frozen = set()
            elif name.startswith("freeze"):
                frozen |= {"second"} if name.endswith("one") else {"first", "second"}
        held = {path.split("/")[-2] for path in before}
        assert moved == held - frozen, (second, moved)


@pytest.mark.parametrize("system", SYSTEMS)
def test_scale_and_bias_stay_frozen_in_another_batch_norm(system: str) -> None:
    """They have no gradients after `swap` either."""
    frozen = SYSTEMS[system]()
    frozen = frozen.like(
        tools.freeze(frozen.model, "first", variables=frozen.variables, affine=True)
    )
    model, variables, x = used("swap", frozen)
    if isinstance(model, nnx.Module):
        grads: Any = nnx.grad(lambda model: (model(x, True) ** 2).sum())(model)
        first, second = grads["first"], grads["second"]
    else:

        def loss(params: Any) -> Any:
            y = model.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])[0]
            return (y**2).sum()

        grads = jax.grad(loss)(variables["params"])
        first, second = grads["first"], grads["second"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(first))
    assert all(leaf.any() for leaf in jax.tree.leaves(second))


class Head(nn.Module):
    """A model with another one as a part."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Returns the output of the part."""
        return nn.Dense(2)(self.backbone(x, train)), self.backbone(x, train)


class Setup(nn.Module):
    """The same, with the part made from a class that a tool returned."""

    backbone: nn.Module

    def setup(self) -> None:
        """Copies the part."""
        self.inner = self.backbone.clone(name=None)

    def __call__(self, x: Any, train: bool) -> Any:
        """Returns the output of the part."""
        return None, self.inner(x, train)


@pytest.mark.parametrize("name", TOOLS)
def test_a_result_as_a_part_of_a_larger_model(name: str) -> None:
    """It does the same there, with its variables under its name: paths are relative to the part."""
    part = used(name, linen(MLP(jnl.BatchNorm), ROWS))
    for kind, at in ((Head, "backbone"), (Setup, "inner")):
        whole = kind(part.model)
        variables = jax.jit(whole.init, static_argnums=2)(KEY, part.x, True)
        variables = {
            collection: {**variables.get(collection, {}), at: tree}
            for collection, tree in part.variables.items()
        }
        if kind is Head:
            fresh = nn.Dense(2).init(KEY, jnp.ones((1, 2)))["params"]
            variables["params"] = {**variables["params"], "Dense_0": fresh}
        subject = Subject(whole, variables, part.x)
        for train in (False, True):
            (_, y), after = subject.step(train=train)
            want, of_part = part.step(train=train)
            np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
            if kind is Setup:  # Head calls it twice
                for path, leaf in of_part.stats.items():
                    key = path.replace("batch_stats/", f"batch_stats/{at}/")
                    np.testing.assert_allclose(after.stats[key], leaf, rtol=1e-5, atol=1e-6)
                assert len(after.stats) == len(of_part.stats)


class Twice(nn.Module):
    """A model with a public method that another one calls."""

    def setup(self) -> None:
        """Creates two layers."""
        self.dense = nn.Dense(4)
        self.norm = nn.BatchNorm(use_running_average=False)

    def features(self, x: Any) -> Any:
        """Returns the normalized features."""
        return self.norm(self.dense(x))

    def __call__(self, x: Any) -> Any:
        """Returns the same."""
        return self.features(x)


def test_a_method_that_another_one_calls() -> None:
    """Layers are replaced once, whichever method is called."""
    model = Twice()
    variables = model.init(KEY, ROWS)
    swapped, variables = tools.swap(model, "group", variables=variables, num_groups=2)
    y: Any = swapped.apply(variables, ROWS, method="features")
    np.testing.assert_array_equal(y, swapped.apply(variables, ROWS))
