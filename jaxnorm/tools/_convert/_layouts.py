"""Translates the arrays of one model to the layout of another."""

from collections.abc import Collection, Mapping

import numpy as np

from ._formats._layout import Layout, Sizes, to_flax, to_torch, with_leading_ones
from ._formats._source import COUNT, Entry, Layer, Path, Source, parts_of
from ._formats._views import HEADS
from ._matching import check_names


class Layouts:
    """The layouts of two models, and what the caller says about single layers."""

    def __init__(
        self,
        wanted: Source,
        found: Source,
        transposed: Collection[str] | None,
        channels_last: Mapping[str, Sizes],
    ) -> None:
        check_names(transposed or (), wanted.layers, "transposed")
        check_names(channels_last, wanted.layers, "channels_last")
        self._wanted, self._found = wanted, found
        self._transposed = None if transposed is None else set(map(parts_of, transposed))
        self._channels = {parts_of(name): sizes for name, sizes in channels_last.items()}

    def translated(self, slot: str, path: Path, partner: Path, came: str) -> np.ndarray:
        """The array for a slot of the layer at ``path``, from the slot ``came`` of its partner."""
        found = self._found.layers[partner]
        layout = Layout(
            self._is_transposed(path, partner), self._channels.get(path), self._heads(path, partner)
        )
        renamed = {**found, slot: found[came]}
        value = self._translated(slot, renamed, self._wanted.layers[path], layout)
        return with_leading_ones(value, self._wanted.layers[path][slot].shape)

    def fit(self, path: Path, partner: Path) -> bool:
        """Whether two layers can be a pair, judging by their arrays and shapes."""
        layer, other = self._wanted.layers[path], self._found.layers[partner]
        layout = Layout(self._is_transposed(path, partner), None, self._heads(path, partner))
        empty = {slot: entry._replace(leaf=_empty(entry)) for slot, entry in other.items()}
        return layer.keys() - {COUNT} == other.keys() - {COUNT} and all(
            self._translated(slot, empty, layer, layout).shape == entry.shape
            for slot, entry in layer.items()
            if slot in other and "/" not in slot
        )

    def _translated(self, slot: str, found: Layer, wanted: Layer, layout: Layout) -> np.ndarray:
        if self._found.is_torch == self._wanted.is_torch:
            return found[slot].numpy()
        return (to_flax if self._found.is_torch else to_torch)(slot, found, wanted, layout)

    def _is_transposed(self, path: Path, partner: Path) -> bool:
        if self._transposed is not None:
            return path in self._transposed
        return path in self._wanted.transposed or partner in self._found.transposed

    def _heads(self, path: Path, partner: Path) -> bool:
        """Whether a layer of Flax has an axis for the heads of attention."""
        layers = self._wanted.layers.get(path, {}), self._found.layers.get(partner, {})
        flax, torch = reversed(layers) if self._wanted.is_torch else layers
        name = (partner if self._wanted.is_torch else path)[-1:]
        if "weight" not in flax or "weight" not in torch:
            return False
        kernel, weight = flax["weight"].shape, torch["weight"].shape
        if len(kernel) == 4 and len(weight) == 2 and kernel[1] == 3:
            return True  # query, key and value in one: (inputs, 3, heads, features of a head)
        return len(kernel) == 3 and bool(name) and name[0] in HEADS


def _empty(entry: Entry) -> np.ndarray:
    """An array of the entry's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), np.float32), entry.shape)
