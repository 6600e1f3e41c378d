"""Takes apart what one library keeps in one array and another one in several."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from ._source import Entry, Path, Source

Place: TypeAlias = tuple[Path, str]
"""A layer and a slot in it."""

Parts: TypeAlias = tuple[Mapping[Place, Entry], Callable[[list[np.ndarray]], np.ndarray]]
"""The arrays that replace an array, and how to join their values again."""

HEADS = ("query", "key", "value", "out")
"""The dense layers of Flax's attention. Their kernels and biases have an axis for the heads."""


class View(NamedTuple):
    """A model in which each layer has arrays of its own, and the way back."""

    source: Source
    replaced: Mapping[Place, tuple[list[Place], Callable[[list[np.ndarray]], np.ndarray]]]

    def joined(
        self, values: Mapping[Path, Mapping[str, np.ndarray]]
    ) -> Mapping[Path, Mapping[str, np.ndarray]]:
        """The values of the arrays of the model, given those of the arrays in the view."""
        joined = {path: dict(of_layer) for path, of_layer in values.items()}
        for (path, slot), (parts, join) in self.replaced.items():
            value = join([values[layer][name] for layer, name in parts])
            joined.setdefault(path, {})[slot] = value
        return joined


def viewed(source: Source, parts_of: Callable[[Source, Path, str, Entry], Parts | None]) -> View:
    """The model with the arrays replaced for which ``parts_of`` returns others."""
    layers: dict[Path, dict[str, Entry]] = {}
    replaced, transposed = {}, set()
    for path, layer in source.layers.items():
        for slot, entry in layer.items():
            found = parts_of(source, path, slot, entry)
            parts, join = found or ({(path, slot): entry}, None)
            for (part, name), of_part in parts.items():
                layers.setdefault(part, {})[name] = of_part
                if path in source.transposed:
                    transposed.add(part)
            if join is not None:
                replaced[path, slot] = list(parts), join
    return View(source._replace(layers=layers, transposed=frozenset(transposed)), replaced)


def stacks(above: Collection[Path]) -> Callable[[Source, Path, str, Entry], Parts | None]:
    """Makes the layers below each of these paths one layer for each index of their first axis."""

    def parts_of(source: Source, path: Path, slot: str, entry: Entry) -> Parts | None:
        for start in above:
            if path[: len(start)] == start and entry.shape:
                rest = path[len(start) :]
                numbers = range(entry.shape[0])
                return {((*start, str(i), *rest), slot): _part(entry, i) for i in numbers}, np.stack
        return None

    return parts_of


def attention(whole: Collection[Path]) -> Callable[[Source, Path, str, Entry], Parts | None]:
    """Makes query, key and value three layers next to ``out``, which PyTorch and timm have in one array.

    Layers called ``qkv`` stay as they are if they are among those to leave ``whole``.
    """

    def parts_of(source: Source, path: Path, slot: str, entry: Entry) -> Parts | None:
        *above, name = path or ("",)
        if slot.startswith("in_proj_"):  # torch.nn.MultiheadAttention
            above, slot = path, slot.removeprefix("in_proj_")
        elif name != "qkv":
            projects = {
                "out_proj": (tuple(above), "in_proj_weight"),
                "proj": ((*above, "qkv"), "weight"),
            }
            layer, of_heads = projects.get(name, (path, ""))
            if of_heads not in source.layers.get(layer, {}) or layer in whole:
                return None
            return {((*above, "out"), slot): entry}, lambda values: values[0]
        if not entry.shape or entry.shape[0] % 3 or path in whole:
            return None
        n = entry.shape[0] // 3
        thirds = [_part(entry, slice(i * n, (i + 1) * n)) for i in range(3)]
        places = [((*above, head), slot) for head in HEADS[:3]]
        return dict(zip(places, thirds, strict=True)), np.concatenate

    return parts_of


def _part(entry: Entry, index: int | slice) -> Entry:
    """A part of an array, or of the description of one."""
    if isinstance(entry.leaf, jax.ShapeDtypeStruct):
        shape = np.broadcast_to(np.zeros(()), entry.shape)[index].shape
        leaf: Any = jax.ShapeDtypeStruct(shape, entry.dtype)
    else:
        leaf = entry.leaf[index]
    written = index if isinstance(index, int) else f"{index.start}:{index.stop}"
    return entry._replace(name=f"{entry.name}[{written}]", leaf=leaf)
