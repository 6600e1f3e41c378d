"""The common form of every library's arrays: layers by path, and the role of each array."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

Path: TypeAlias = tuple[str, ...]


class Entry(NamedTuple):
    """One array of a layer."""

    name: str  # as written by its library
    role: str  # in Flax's terms, such as "kernel" or "scale"; PyTorch's "weight" may be any of them
    leaf: Any  # an array, or an object with the shape and the dtype of one

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(self.leaf.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array. PyTorch tensors have types of their own, with the names of NumPy's."""
        return jnp.dtype(str(self.leaf.dtype).removeprefix("torch."))

    def numpy(self) -> np.ndarray:
        """The array in NumPy. A PyTorch tensor of bfloat16, which NumPy lacks, is widened, which is exact."""
        if not hasattr(self.leaf, "detach"):
            return np.asarray(self.leaf)
        tensor = self.leaf.detach().cpu()
        return (tensor if self.dtype.kind in "biufc" else tensor.float()).numpy()


Layer: TypeAlias = Mapping[str, Entry]  # by slot


class Source(NamedTuple):
    """All layers of a model; each maps slots to arrays.

    A slot is PyTorch's name for the role of an array: ``weight``, ``bias``, ``running_mean``, or ``weight/g``
    for what a wrapper keeps for a weight. Entries of the same slot are converted to each other.
    """

    layers: Mapping[Path, Layer]
    is_torch: bool  # whether arrays have PyTorch's layout
    transposed: frozenset[Path] = frozenset()  # layers known to be transposed convolutions
    uneven: Mapping[
        Path, str
    ] = {}  # layers that pad unevenly, and the padding that PyTorch would use


# Roles in Flax that have another name as a slot. One array of a layer is its "weight".
_WEIGHTS = ("weight", "kernel", "embedding", "scale")
COUNT = "num_batches_tracked"
_SLOTS = {"mean": "running_mean", "var": "running_var", "count": COUNT}
_OF_WRAPPERS = {"scale": "g", "u": "u", "sigma": "v"}


_KERAS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_OTHERWISE = _KERAS | {slot: name for name, slot in _KERAS.items()}


def slot_in(layer: Layer, slot: str) -> str:
    """The slot in ``layer`` for the same array: of the same name or, if there is none, of Keras's."""
    other = _OTHERWISE.get(slot, slot)
    return other if slot not in layer and other in layer else slot


def by_slot(roles: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries of a Flax layer, by the slots of their roles."""
    weight = next((role for role in _WEIGHTS if role in roles), None)

    def slot_of(role: str) -> str:
        base, *of_wrapper = role.split(
            "/"
        )  # "kernel/scale" is the scale of a weight-normalized kernel
        slot = "weight" if base == weight else _SLOTS.get(base, base)
        return "/".join([slot, *(_OF_WRAPPERS.get(name, name) for name in of_wrapper)])

    return {slot_of(role): entry for role, entry in roles.items()}


def parts_of(name: str) -> Path:
    """The path that a name stands for, with any library's separator."""
    return tuple(part for part in re.split(r"[./]", name) if part)


def some(items: Iterable[str], limit: int = 12, between: str = ", ") -> str:
    """Joins the first ``limit`` items, and the number of those left out."""
    listed = list(items)
    rest = [f"and {len(listed) - limit} more"] if len(listed) > limit else []
    return between.join(listed[:limit] + rest)
