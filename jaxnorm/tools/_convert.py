"""The arrays of a model under the names, and in the layout, of another library."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core._explained import explained
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
    """The arrays of ``source`` as ``like`` has them: of PyTorch, Linen and NNX, to each of them.

        (O, I, H, W) = (H, W, I, O)    weight = kernel, scale or embedding    running_var = var

    Every array of ``source`` must have its place in ``like``, and the other way round. Nothing is written
    to either. Options (momentum, epsilon) are no arrays: `torch_options` translates them.

    Args:
        source: a ``state_dict`` of PyTorch, or the path of a .safetensors or .npz file of one; variables of
            Linen; a model of NNX; ``(params, state)`` of Haiku; a module of Equinox, or ``(module, state)``.
        like: what is to be made: variables of Linen (or their shapes, from `jax.eval_shape`), a model of
            NNX, or a ``state_dict`` of PyTorch. Names, shapes, dtypes and devices are those of ``like``; its
            values are not read, but for ``num_batches_tracked`` where ``source`` counts no batches.
        names: where names differ: a mapping from the path of a layer in ``like``, or the beginning of one,
            to its name in ``source``; or a function of the path. ``{"": "module"}`` puts a name before all.
            None pairs layers by name, ``layer1_0/conv1`` with ``layer1.0.conv1``, or if not one name
            agrees, by shapes where there is one way only.
        transposed: paths in ``like`` of the transposed convolutions whose window Flax does not turn round
            (``transpose_kernel=False``). None is those of that class in an NNX model, and those in Linen that
            are called ``ConvTranspose_0`` and so on.
        channels_last: for each layer after a flattening its path in ``like`` and the sizes ``(C, H, W)``
            that PyTorch flattens, where Flax flattens ``(H, W, C)``; for a norm over all three as well.

    Returns:
        Linen's variables or a new NNX model with arrays of JAX; for PyTorch a dictionary of NumPy's, for
        `torch.from_numpy`, in which bfloat16 is widened to float32.

    Raises:
        ValueError: arrays are left over on either side, or have another shape or kind, or an argument names
            no layer, or a file is a pickle; the message lists what, and says what to do.

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
            f"every array of source must be one of like, and the other way round; got\n  "
            f"{_NEW_LINE.join(both)}\nWhere names differ, pass names={{path in like: name in source}}; what "
            f"like has no use for, take out of source. Transposed convolutions and layers after a flattening "
            f"have arguments of their own."
        )
    return write(like, values)


class _Layouts:
    """How the arrays of one model become those of another."""

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
        """Whether one layer may be the other, by what they have and by its shapes."""
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
    """An array of that shape in no memory."""
    return np.broadcast_to(np.zeros((), np.float32), entry.shape)


def _misfit(entry: Entry, came: Entry, value: np.ndarray) -> Iterator[str]:
    """What is wrong with an array for this place."""
    if value.shape != entry.shape:
        became = "" if value.shape == came.shape else f", which becomes {value.shape}"
        yield f"like's {entry.name} {entry.shape}: got {came.name} {came.shape}{became}"
    elif _kind(entry) != _kind(came):
        yield f"like's {entry.name} of {entry.dtype}: got {came.name} of {came.dtype}"


def _kind(entry: Entry) -> type:
    kinds = (jnp.complexfloating, jnp.floating, jnp.integer)
    return next((kind for kind in kinds if jnp.issubdtype(entry.dtype, kind)), entry.dtype.type)


def _left_over(wanted: Source, found: Source, pairs: Mapping[Path, Path]) -> Iterator[str]:
    """What of the source has no place. A count of batches that nobody needs is no loss."""
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
