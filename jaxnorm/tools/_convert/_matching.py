"""Pairs the layers of two models."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

import jax

from .._model._where import Where, matches
from ._formats._source import Path, Source, parts_of, some

Names: TypeAlias = Mapping[str, str] | Callable[[str], str]


def paired(
    wanted: Source, found: Source, names: Names | None, fits: Callable[[Path, Path], bool] | None
) -> dict[Path, Path]:
    """Pairs each layer of ``wanted`` with its counterpart in ``found``, which may be missing there.

    If no name matches, layers are paired by shape, unless there is nothing that says which ones ``fit``.
    """
    renamed = {path: _renamed(path, names) for path in wanted.layers}
    resolve = _resolver(renamed.values(), found.layers)
    pairs = {path: resolve(name) for path, name in renamed.items()}
    by_name = any(partner in found.layers for partner in pairs.values())
    if names is None and fits is not None and not by_name:
        return _by_shape(wanted, found, fits) or pairs
    return pairs


def named_alike(wanted: Source, found: Source, names: Names | None) -> tuple[set[Path], set[Path]]:
    """The layers of both models for which the other one has a layer of that name."""
    if callable(names) and wanted.is_torch:  # it may know only layers that are taken apart
        names = None
    renamed = {path: _form(_renamed(path, names)) for path in wanted.layers}
    forms = set(renamed.values()) & set(map(_form, found.layers))
    in_wanted = {path for path, form in renamed.items() if form in forms}
    return in_wanted, {path for path in found.layers if _form(path) in forms}


def check_names(
    given: Iterable[str], layers: Iterable[Path], argument: str, owner: str = "like"
) -> None:
    """Validates that each of ``given`` is the path of a layer.

    Raises:
        ValueError: If there is no layer of that name.
    """
    layers = list(layers)
    unknown = [name for name in given if parts_of(name) not in layers]
    if unknown:
        raise ValueError(
            f"{argument} must name layers of {owner}; got {some(map(repr, unknown))}, but {owner} has "
            f"{some(repr('/'.join(path)) for path in layers)}. Use these names."
        )


def arrays_named(
    names: Mapping[str, str], wanted: Source, found: Source
) -> dict[str, tuple[tuple[Path, str], tuple[Path, str]]]:
    """The ``names`` of single arrays, each with the layers and slots that it pairs."""
    arrays: dict[Path, tuple[Path, str]] = {}
    for path, layer in wanted.layers.items():
        for slot, entry in layer.items():
            arrays[(*path, entry.role or slot)] = path, slot
    layers = set(beginnings(wanted.layers))
    pairs = {}
    for name, other in names.items():
        if parts_of(name) in arrays and parts_of(name) not in layers:
            *path, role = parts_of(other)
            of_other = found.layers.get(tuple(path), {})
            slots = [slot for slot, entry in of_other.items() if role in (slot, entry.role)]
            pairs[name] = arrays[parts_of(name)], (tuple(path), slots[0] if slots else role)
    return pairs


def kept_arrays(keep: Where | None, wanted: Source) -> set[tuple[Path, str]]:
    """The layers and slots of the arrays that keep their values.

    Raises:
        ValueError: If there is none, or one has no values.
    """
    if keep is None:
        return set()
    kept = {
        (path, slot): entry
        for path, layer in wanted.layers.items()
        for slot, entry in layer.items()
        if any(matches(keep, name) for name in _spellings(path, slot, entry.role, keep))
    }
    if not kept:
        raise ValueError(
            f"keep must match at least one layer of like; got {keep!r}, but like has "
            f"{some(map('/'.join, wanted.layers))}. Use a pattern such as 'head/*'."
        )
    for entry in kept.values():
        if isinstance(entry.leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"like must hold the values of layers to keep; got only the shape of {entry.name}. Pass "
                f"variables from init, not from jax.eval_shape."
            )
    return set(kept)


def _spellings(path: Path, slot: str, role: str, keep: Where) -> Iterator[str]:
    """The names that select an array: of its layer and, in a pattern, with dots or its own name, too."""
    yield "/".join(path)
    if not callable(keep):
        yield ".".join(path)
        for name in {slot, role}:
            yield "/".join((*path, name))
            yield ".".join((*path, name))


def beginnings(layers: Iterable[Path]) -> list[Path]:
    """The paths of the layers and all of their prefixes."""
    return list(dict.fromkeys(path[:end] for path in layers for end in range(len(path) + 1)))


def _renamed(path: Path, names: Names | None) -> Path:
    """The name of a layer in the source. A mapping applies to the longest prefix that it contains."""
    if names is None:
        return path
    if callable(names):
        return parts_of(names("/".join(path)))
    by_path = {parts_of(name): parts_of(other) for name, other in names.items()}
    for end in range(len(path), -1, -1):
        if path[:end] in by_path:
            return by_path[path[:end]] + path[end:]
    return path


def _resolver(names: Iterable[Path], layers: Collection[Path]) -> Callable[[Path], Path]:
    """A function that finds one of ``layers`` by its name, even if other separators are used.

    If another separator can mean several layers, or several of ``names`` mean one, they must be exact.
    """
    exact = set(layers)
    by_form = {_form(path): path for path in exact}
    forms = [Counter(map(_form, paths)) for paths in (set(names), exact)]

    def resolve(path: Path) -> Path:
        form = _form(path)
        if path in exact or any(count[form] > 1 for count in forms):
            return path
        return by_form.get(form, path)

    return resolve


def _form(path: Path) -> str:
    """The path as one name: Linen's ``blocks_0_1/fc`` is ``blocks.0.1.fc`` elsewhere."""
    return "_".join(path)


def _by_shape(
    wanted: Source, found: Source, fits: Callable[[Path, Path], bool]
) -> dict[Path, Path] | None:
    """The only way to pair all layers of both models by their contents, or None if it is not unique.

    If there is only one way, some layer always has only one candidate.
    """
    options = {path: {p for p in found.layers if fits(path, p)} for path in wanted.layers}
    pairs: dict[Path, Path] = {}
    if len(wanted.layers) != len(found.layers):
        return None
    while options:
        path = next((path for path, left in options.items() if len(left) == 1), None)
        if path is None:
            return None
        (pairs[path],) = options.pop(path)
        for left in options.values():
            left.discard(pairs[path])
    return pairs
