"""Converts the arrays of a model to the names and the layout of another library."""

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core.calling._explained import explained
from .._model._where import Where
from ._formats._layout import Sizes
from ._formats._read import read_like, read_source, write
from ._formats._source import COUNT, Entry, Layer, Path, Source, parts_of, slot_in, some
from ._formats._views import Place, View, attention, stacks, viewed
from ._layouts import Layouts
from ._matching import (
    Names,
    arrays_named,
    beginnings,
    check_names,
    kept_arrays,
    named_alike,
    paired,
)

_Module = TypeVar("_Module", bound=nnx.Module)
_NEW_LINE = "\n  "
_log = logging.getLogger(__name__)


@overload
def convert(
    source: object,
    *,
    like: _Module,
    names: Names | None = None,
    transposed: Collection[str] | None = None,
    channels_last: Mapping[str, Sizes] | None = None,
    stacked: Collection[str] = (),
    keep: Where | None = None,
) -> _Module: ...
@overload
def convert(
    source: object,
    *,
    like: Mapping[str, Any],
    names: Names | None = None,
    transposed: Collection[str] | None = None,
    channels_last: Mapping[str, Sizes] | None = None,
    stacked: Collection[str] = (),
    keep: Where | None = None,
) -> dict[str, Any]: ...
@explained
def convert(
    source: object,
    *,
    like: Any,
    names: Names | None = None,
    transposed: Collection[str] | None = None,
    channels_last: Mapping[str, Sizes] | None = None,
    stacked: Collection[str] = (),
    keep: Where | None = None,
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
            values are not read, except those of layers to ``keep``, and ``num_batches_tracked`` if
            ``source`` counts no batches.
        names: for layers with different names: a mapping from the path of a layer in ``like``, or a prefix
            of it, to its name in ``source``; or a function of the path. ``{"": "module"}`` adds a prefix to
            all names. Single arrays can be named too: ``{"block/scale/scale": "block.gamma"}``. None pairs
            layers by name, ``layer1_0/mlp_fc1`` with ``layer1.0.mlp.fc1``, or, if no name matches, by shape
            if there is only one way.
        transposed: paths in ``like`` of the transposed convolutions whose window Flax does not flip
            (``transpose_kernel=False``). None selects the layers of that class in an NNX model, and the
            layers called ``ConvTranspose_0`` and so on in Linen variables.
        channels_last: for each layer after a flatten, its path in ``like`` and the sizes ``(C, H, W)`` that
            PyTorch flattens, while Flax flattens ``(H, W, C)``; also for a norm over all three.
        stacked: paths, in ``like`` or ``source``, of layers whose arrays have a first axis over several
            layers, as `flax.linen.scan` and `flax.nnx.vmap` make them. The layers are then numbered on both
            sides: ``blocks/0/norm`` is ``blocks.0.norm``.
        keep: selects layers of ``like`` that keep their values, by path: a pattern such as ``"head"`` or
            ``"head/*"``, or a function. What ``source`` has for them, in any shape, is ignored. A pattern can
            also name arrays, and use dots: ``"head.bias"``. With ``keep``, layers are not paired by shape.

    Returns:
        Linen variables or a new NNX model with JAX arrays; for PyTorch, a dictionary of NumPy arrays for
        `torch.from_numpy`, with bfloat16 widened to float32. The logger ``jaxnorm`` says at level DEBUG which
        layer comes from which.

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
    target, given = _views(read_like(like), read_source(source), names, stacked)
    wanted, found = target.source, given.source
    one_by_one = {} if callable(names) or names is None else arrays_named(names, wanted, found)
    if names is not None and not callable(names):
        names = {name: other for name, other in names.items() if name not in one_by_one}
        check_names(names, beginnings(wanted.layers), "names")
    layouts = Layouts(wanted, found, transposed, channels_last or {})
    pairs = paired(wanted, found, names, layouts.fit if keep is None else None)
    sources = {
        (path, slot): (pairs[path], slot_in(found.layers.get(pairs[path], {}), slot))
        for path, layer in wanted.layers.items()
        for slot in layer
    } | dict(one_by_one.values())
    kept = kept_arrays(keep, wanted)
    values: dict[Path, dict[str, np.ndarray]] = {path: {} for path in wanted.layers}
    problems = []
    for (path, slot), (partner, came) in sources.items():
        entry, other = wanted.layers[path][slot], found.layers.get(partner, {})
        if (path, slot) in kept or (slot == COUNT and wanted.is_torch and came not in other):
            values[path][slot] = entry.numpy()
        elif came in other:
            values[path][slot] = value = layouts.translated(slot, path, partner, came)
            problems += _misfit(entry, other[came], value)
        elif other:
            absent = f"not in source's {_described(partner, other)}"
            problems.append(f"like's {entry.name} {entry.shape}: {absent}")
        else:
            described = _described(path, wanted.layers[path])
            problems.append(f"like's {described}: no {_joined(partner)!r} in source")
    new = [path for path, layer in wanted.layers.items() if kept >= {(path, s) for s in layer}]
    ignored = {(pairs[path], slot) for path in new for slot in found.layers.get(pairs[path], {})}
    left_over = list(_left_over(found, {*sources.values(), *ignored}))
    problems = list(dict.fromkeys(problems))
    if problems or left_over:
        both = [some(lines, between=_NEW_LINE) for lines in (problems, left_over) if lines]
        by_name = "" if keep is None or names else "With keep, layers are paired by name only. "
        raise ValueError(
            f"every array in source must match one in like, and vice versa; got\n  "
            f"{_NEW_LINE.join(both)}\n{by_name}If names differ, pass names={{path in like: name in source}}; "
            f"remove arrays from source that like does not need. For transposed convolutions and layers "
            f"after a flatten, see the arguments transposed and channels_last; for layers in a loop, "
            f"stacked; for layers that are new in like, keep."
        )
    for path, padding in {**wanted.uneven, **found.uneven}.items():
        if wanted.is_torch != found.is_torch:
            warnings.warn(
                f"{_joined(path)} has a stride and padding='SAME', which pads more after than before, while "
                f"PyTorch pads evenly. Outputs will differ unless the model uses padding={padding}.",
                stacklevel=3,
            )
    _log.info(
        "convert: %d layers from source, %d kept%s",
        len(pairs) - len(new),
        len(new),
        f" ({some(map(_joined, new))})" if new else "",
    )
    for path, partner in pairs.items():
        _log.debug(
            "convert: %s from %s", _joined(path), "like" if path in new else _joined(partner)
        )
    return write(like, target.joined(values))


def _views(
    wanted: Source, found: Source, names: Names | None, stacked: Collection[str]
) -> tuple[View, View]:
    """Both models with the same arrangement of layers and arrays.

    Raises:
        ValueError: If neither model has layers below one of the paths ``stacked``.
    """
    stacked = (stacked,) if isinstance(stacked, str) else stacked
    above = set(map(parts_of, stacked))
    check_names(stacked, beginnings([*wanted.layers, *found.layers]), "stacked", "like or source")
    views, (alike, alike_found) = [], named_alike(wanted, found, names)
    for model, other, whole in ((wanted, found, alike), (found, wanted, alike_found)):
        own = [path for path in above if _is_stack(path, model)]
        has_heads = any(path[-1:] == ("query",) for path in other.layers)
        if own:
            views.append(viewed(model, stacks(own)))
        elif model.is_torch and not other.is_torch and has_heads:
            views.append(viewed(model, attention(whole)))
        else:
            views.append(View(model, {}))
    return views[0], views[1]


def _is_stack(above: Path, model: Source) -> bool:
    """Whether a model has layers below a path, and does not number them."""
    below = [path[len(above) :] for path in model.layers if path[: len(above)] == above]
    return bool(below) and not all(rest and rest[0].isdigit() for rest in below)


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


def _left_over(found: Source, used: Collection[Place]) -> Iterator[str]:
    """Lists what in the source has no match. An unneeded batch count is ignored."""
    for path, layer in found.layers.items():
        unused = [slot for slot in layer if (path, slot) not in used]
        if len(unused) == len(layer):
            yield f"source's {_described(path, layer)}: nothing in like"
            continue
        for slot in unused:
            if slot != COUNT:
                yield f"source's {layer[slot].name} {layer[slot].shape}: nothing in like"


def _described(path: Path, layer: Layer) -> str:
    arrays = (f"{entry.role or slot} {entry.shape}" for slot, entry in layer.items())
    return f"{_joined(path)!r} with {', '.join(arrays)}"


def _joined(path: Path) -> str:
    return "/".join(path)
