"""Converts the arrays of a model to the names and the layout of another library."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core.calling._explained import explained
from ._formats._layout import Layout, Sizes, to_flax, to_torch
from ._formats._read import read_like, read_source, write
from ._formats._source import COUNT, Entry, Layer, Path, Source, parts_of, some
from ._matching import Names, beginnings, check_names, paired

_Module = TypeVar("_Module", bound=nnx.Module)
_NEW_LINE = "\n  "


@overload
def convert(
    source: object,
    *,
    like: _Module,
    names: Names | None = None,
    transposed: Collection[str] | None = None,
    channels_last: Mapping[str, Sizes] | None = None,
) -> _Module: ...
@overload
def convert(
    source: object,
    *,
    like: Mapping[str, Any],
    names: Names | None = None,
    transposed: Collection[str] | None = None,
    channels_last: Mapping[str, Sizes] | None = None,
) -> dict[str, Any]: ...
@explained
def convert(
    source: object,
    *,
    like: Any,
    names: Names | None = None,
    transposed: Collection[str] | None = None,
    channels_last: Mapping[str, Sizes] | None = None,
) -> Any:
    """Converts the arrays of ``source`` to the form of ``like``, between PyTorch, Linen and NNX.

        (O, I, H, W) = (H, W, I, O)    weight = kernel, scale or embedding    running_var = var

    Every array in ``source`` must match one in ``like``, and vice versa. Neither is modified. Options
    (momentum, epsilon) are not arrays: `torch_options` translates them.

    Args:
        source: a PyTorch ``state_dict``, or the path of a .safetensors or .npz file of one; Linen variables;
            an NNX model; Haiku's ``(params, state)``; an Equinox module, or ``(module, state)``.
        like: the target: Linen variables (or their shapes, from `jax.eval_shape`), an NNX model, or a
            PyTorch ``state_dict``. The result has the names, shapes, dtypes and devices of ``like``. Its
            values are not read, except ``num_batches_tracked`` if ``source`` counts no batches.
        names: for layers with different names: a mapping from the path of a layer in ``like``, or a prefix
            of it, to its name in ``source``; or a function of the path. ``{"": "module"}`` adds a prefix to
            all names. None pairs layers by name, ``layer1_0/conv1`` with ``layer1.0.conv1``, or, if no name
            matches, by shape if there is only one way.
        transposed: paths in ``like`` of the transposed convolutions whose window Flax does not flip
            (``transpose_kernel=False``). None selects the layers of that class in an NNX model, and the
            layers called ``ConvTranspose_0`` and so on in Linen variables.
        channels_last: for each layer after a flatten, its path in ``like`` and the sizes ``(C, H, W)`` that
            PyTorch flattens, while Flax flattens ``(H, W, C)``; also for a norm over all three.

    Returns:
        Linen variables or a new NNX model with JAX arrays; for PyTorch, a dictionary of NumPy arrays for
        `torch.from_numpy`, with bfloat16 widened to float32.

    Raises:
        ValueError: If an array on either side has no match, a shape or kind of dtype differs, an argument
            names no layer, or a file is a pickle.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxnorm import tools
        >>> state_dict = {"fc.weight": np.ones((3, 2)), "fc.bias": np.zeros(3), "bn.weight": np.ones(3)}
        >>> like = {"params": {"fc": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}}
        >>> like["params"]["bn"] = {"scale": jnp.zeros(3)}
        >>> tools.convert(state_dict, like=like)["params"]["fc"]["kernel"].shape
        (2, 3)
    """
    wanted, found = read_like(like), read_source(source)
    if names is not None and not callable(names):
        check_names(names, beginnings(wanted.layers), "names")
    layouts = _Layouts(wanted, found, transposed, channels_last or {})
    pairs = paired(wanted, found, names, layouts.fit)
    values: dict[Path, dict[str, np.ndarray]] = {path: {} for path in wanted.layers}
    problems = []
    for path, layer in wanted.layers.items():
        partner = found.layers.get(pairs[path])
        if partner is None:
            problems.append(
                f"like's {_described(path, layer)}: no {_joined(pairs[path])!r} in source"
            )
            continue
        for slot, entry in layer.items():
            if slot in partner:
                value = layouts.translated(slot, path, pairs[path])
                values[path][slot] = value
                problems += _misfit(entry, partner[slot], value)
            elif slot == COUNT and wanted.is_torch:
                values[path][slot] = entry.numpy()
            else:
                absent = f"not in source's {_described(pairs[path], partner)}"
                problems.append(f"like's {entry.name} {entry.shape}: {absent}")
    left_over = list(_left_over(wanted, found, pairs))
    if problems or left_over:
        both = [some(lines, between=_NEW_LINE) for lines in (problems, left_over) if lines]
        raise ValueError(
            f"every array in source must match one in like, and vice versa; got\n  "
            f"{_NEW_LINE.join(both)}\nIf names differ, pass names={{path in like: name in source}}; remove "
            f"arrays from source that like does not need. For transposed convolutions and layers after a "
            f"flatten, see the arguments transposed and channels_last."
        )
    return write(like, values)


class _Layouts:
    """Translates the arrays of one model to the layout of another."""

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

    def translated(self, slot: str, path: Path, partner: Path) -> np.ndarray:
        """The array for a slot of the layer at ``path``."""
        layout = Layout(self._is_transposed(path, partner), self._channels.get(path))
        return self._translated(
            slot, self._found.layers[partner], self._wanted.layers[path], layout
        )

    def fit(self, path: Path, partner: Path) -> bool:
        """Whether two layers can be a pair, judging by their arrays and shapes."""
        layer, other = self._wanted.layers[path], self._found.layers[partner]
        layout = Layout(self._is_transposed(path, partner))
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


def _empty(entry: Entry) -> np.ndarray:
    """An array of the entry's shape that takes no memory."""
    return np.broadcast_to(np.zeros((), np.float32), entry.shape)


def _misfit(entry: Entry, came: Entry, value: np.ndarray) -> Iterator[str]:
    """Describes what is wrong with an array for this entry."""
    if value.shape != entry.shape:
        became = "" if value.shape == came.shape else f", which becomes {value.shape}"
        yield f"like's {entry.name} {entry.shape}: got {came.name} {came.shape}{became}"
    elif _kind(entry) != _kind(came):
        yield f"like's {entry.name} of {entry.dtype}: got {came.name} of {came.dtype}"


def _kind(entry: Entry) -> type:
    kinds = (jnp.complexfloating, jnp.floating, jnp.integer)
    return next((kind for kind in kinds if jnp.issubdtype(entry.dtype, kind)), entry.dtype.type)


def _left_over(wanted: Source, found: Source, pairs: Mapping[Path, Path]) -> Iterator[str]:
    """Lists what in the source has no match. An unneeded batch count is ignored."""
    for partner, entries in found.layers.items():
        layers = [wanted.layers[path] for path, other in pairs.items() if other == partner]
        if not layers:
            yield f"source's {_described(partner, entries)}: nothing in like"
            continue
        for slot, entry in entries.items():
            if slot != COUNT and not any(slot in layer for layer in layers):
                yield f"source's {entry.name} {entry.shape}: nothing in like"


def _described(path: Path, layer: Layer) -> str:
    arrays = (f"{entry.role or slot} {entry.shape}" for slot, entry in layer.items())
    return f"{_joined(path)!r} with {', '.join(arrays)}"


def _joined(path: Path) -> str:
    return "/".join(path)
