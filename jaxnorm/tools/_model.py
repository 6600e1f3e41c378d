"""What the tools need of a model, whichever module system it is of: they are written once, the same."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import jax

from ._intercept import Answer

Run: TypeAlias = Callable[[Any, Any], Any]
"""How a model is run on a batch: ``lambda model, batch: model(batch["image"], train=False)``."""

Stats: TypeAlias = Mapping[str, Mapping[str, jax.Array]]
"""Arrays of layers, by the path of the layer and their name."""

Kinds: TypeAlias = tuple[type, ...]


class Model(Protocol):
    """A model, and in ``state`` all the arrays that it holds."""

    state: Any

    def paths(self) -> list[str]:
        """The layers with running statistics."""
        ...

    def stats(self, path: str) -> dict[str, jax.Array]:
        """What the layer at ``path`` holds in ``batch_stats``."""
        ...

    def params(self, path: str) -> dict[str, jax.Array]:
        """The scale and the bias of the layer at ``path``, if it has them."""
        ...

    def run(
        self,
        state: Any,
        stats: Stats,
        run: Run,
        batch: Any,
        answer: Answer,
        number: jax.Array | None = None,
    ) -> tuple[Any, Stats, Any]:
        """What ``run`` returns, and ``stats`` and ``state`` afterwards.

        The model holds ``state``, and its layers these ``stats`` in the place of their own, or besides. For
        its batch norms, or layers of the kinds it was made for, ``answer`` says what they return and write.
        The random numbers that it draws are others for every ``number``, that of the batch among several.
        """
        ...

    def split(self, state: Any) -> tuple[Any, Any]:
        """The trained parameters in ``state``, and the rest of it."""
        ...

    def join(self, params: Any, rest: Any) -> Any:
        """``state`` again."""
        ...

    def with_stats(self, state: Any, stats: Stats) -> Any:
        """``state`` with these arrays in ``batch_stats``."""
        ...

    def returned(self, stats: Stats) -> Any:
        """What was given, variables or NNX model, with these ``stats``."""
        ...

    def as_given(self, collections: Any) -> Any:
        """Collections of Linen, each as the kind of mapping that was given: some are a FrozenDict."""
        ...


def split_path(path: str) -> tuple[str, ...]:
    """The keys on the way to a layer; that of the model itself has none."""
    return tuple(filter(None, path.split("/")))
