"""Which layer of one model is which of another."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from ._formats._source import Path, Source, normal_form, parts_of, some

Names: TypeAlias = Mapping[str, str] | Callable[[str], str]


def paired(
    wanted: Source, found: Source, names: Names | None, fits: Callable[[Path, Path], bool]
) -> dict[Path, Path]:
    """For each layer of ``wanted`` the one of ``found`` that it is, or that is missing there."""
    resolve = _resolver(found.layers)
    pairs = {path: resolve(_renamed(path, names)) for path in wanted.layers}
    if names is None and not any(partner in found.layers for partner in pairs.values()):
        return _by_shape(wanted, found, fits) or pairs
    return pairs


def check_names(given: Iterable[str], layers: Iterable[Path], argument: str) -> None:
    """That each is the path of a layer.

    Raises:
        ValueError: there is none of that name.
    """
    layers = list(layers)
    unknown = [name for name in given if parts_of(name) not in layers]
    if unknown:
        raise ValueError(
            f"{argument} must name layers of like; got {some(map(repr, unknown))}, and there are "
            f"{some(repr('/'.join(path)) for path in layers)}. Take the names from these."
        )


def beginnings(layers: Iterable[Path]) -> list[Path]:
    """The layers, and what they are in."""
    return list(dict.fromkeys(path[:end] for path in layers for end in range(len(path) + 1)))


def _renamed(path: Path, names: Names | None) -> Path:
    """What the layer is called in the source: by a mapping, with the longest beginning that it has."""
    if names is None:
        return path
    if callable(names):
        return parts_of(names("/".join(path)))
    by_path = {parts_of(name): parts_of(other) for name, other in names.items()}
    for end in range(len(path), -1, -1):
        if path[:end] in by_path:
            return by_path[path[:end]] + path[end:]
    return path


def _resolver(layers: Iterable[Path]) -> Callable[[Path], Path]:
    """A function to the path of the layer with that name, if only its numbers are written otherwise."""
    exact = set(layers)
    normal = {normal_form(path): path for path in exact}
    several = {form for form, n in Counter(map(normal_form, exact)).items() if n > 1}

    def resolve(path: Path) -> Path:
        form = normal_form(path)
        return path if path in exact or form in several else normal.get(form, path)

    return resolve


def _by_shape(
    wanted: Source, found: Source, fits: Callable[[Path, Path], bool]
) -> dict[Path, Path] | None:
    """The only way to pair all layers of both by what is in them, or None if there is none or another.

    Where there is one way only, some layer always has one partner only.
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
