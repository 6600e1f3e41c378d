"""What the tools need from a model: the common interface for Linen and NNX."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, TypeAlias

import jax

from ...norms._shared._running_norm import RunningNorm
from ._intercept import Answer
from ._types import Batch, Tree

Run: TypeAlias = Callable[[Any, Any], Any]
"""Runs a model on a batch: ``lambda model, batch: model(batch["image"], train=False)``."""

Stats: TypeAlias = Mapping[str, Mapping[str, jax.Array]]
"""Arrays of layers, by the layer's path and the array's name."""


class Model(Protocol):
    """A model; ``state`` contains all of its arrays."""

    state: Tree

    def bare(self) -> "Model":
        """The model without arrays. Its ``run`` takes those of any model with its meaning."""
        ...

    def meaning(self) -> Hashable:
        """What determines the effect of ``run``, besides its arguments.

        Raises:
            Changeable: If it can change unnoticed.
        """
        ...

    def keys(self, number: jax.Array | int | None = None) -> Any:
        """The random keys for the batch with this index; for all batches the same without one."""
        ...

    def paths(self) -> list[str]:
        """The paths of the layers with running statistics."""
        ...

    def stats(self, path: str) -> dict[str, jax.Array]:
        """The mean, variance and count of the layer at ``path``, as far as it has them."""
        ...

    def params(self, path: str) -> dict[str, jax.Array]:
        """The scale and the bias of the layer at ``path``, if it has them."""
        ...

    def norm(self, path: str, traced: RunningNorm | None) -> RunningNorm | None:
        """How the layer at ``path`` keeps running statistics, given its answer in a trace.

        There, options that are arrays of an NNX layer are tracers.
        """
        ...

    def run(
        self,
        state: Tree,
        stats: Stats,
        run: Run,
        batch: Batch,
        answer: Answer,
        keys: Any = None,
    ) -> tuple[Any, Stats, Any]:
        """Returns the output of ``run``, and ``stats`` and ``state`` afterwards.

        The model holds ``state``, and its layers hold ``stats`` instead of, or in addition to, their own
        arrays. ``answer`` decides what watched layers return and write.
        """
        ...

    def split(self, state: Tree) -> tuple[Any, Any]:
        """Splits ``state`` into the trained parameters and the rest."""
        ...

    def join(self, params: Tree, rest: Tree) -> Any:
        """Joins the two parts of ``state`` again."""
        ...

    def with_stats(self, state: Tree, stats: Stats) -> Any:
        """``state`` with these arrays in ``batch_stats``."""
        ...

    def returned(self, stats: Stats) -> Any:
        """What the caller passed, variables or an NNX model, with these ``stats``."""
        ...

    def as_given(self, collections: Tree) -> Any:
        """Linen collections, each as a FrozenDict if the caller passed one."""
        ...


def split_path(path: str) -> tuple[str, ...]:
    """The keys on the path to a layer; the model itself has none."""
    return tuple(filter(None, path.split("/")))
