"""Decides which batch norm folds into which layer, and why others do not."""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ...core._axes import canonical_axes
from .._model._flax_layers import CONVS, DENSE, EMBEDS, LAYERS
from .._model._frozen import unfrozen_class
from .._model._intercept import BATCH_NORMS
from .._model._norms import class_of, is_norm
from .._model._types import Layer
from ._affine import factor_and_offset
from ._dataflow import LARGEST, Flow, Leaf, Origin


def is_norm_or_layer(layer: Layer) -> bool:
    """Whether norms may fold into ``layer``, or it keeps running statistics."""
    return isinstance(layer, LAYERS) or is_norm(layer)


# Functions that users can substitute for a layer's own. It is then unknown what the layer computes.
_FUNCTIONS = ("promote_dtype", "dot_general", "dot_general_cls")
_FUNCTIONS += ("conv_general_dilated", "conv_general_dilated_cls")


class Pair(NamedTuple):
    """A batch norm and the layer that it folds into."""

    norm: str
    layer: str
    before: bool  # whether the layer comes before the norm


def pair_of(flow: Flow, norm: str) -> Pair | str:
    """The layer that the batch norm at ``norm`` folds into exactly, or the reason why there is none."""
    reason = next(_against_norm(flow, norm), None)
    if reason is not None:
        return reason
    source, readers = flow.inputs[norm], flow.layers_after.get(norm, set())
    not_before = next(_against_before(flow, norm, source), None)
    if not_before is None and isinstance(source, Origin):
        return Pair(norm, source.path, before=True)
    not_after = next(_against_after(flow, norm, readers), None)
    if not_after is None:
        return Pair(norm, *readers, before=False)
    return (
        f"it folds into neither the layer before ({not_before}) nor the layer after ({not_after})"
    )


def _against_norm(flow: Flow, norm: str) -> Iterator[str]:
    call = flow.seen[norm].call
    layer: Layer = call.layer
    if not isinstance(layer, BATCH_NORMS):
        yield f"it is of class {_kind(layer).__name__}, and only BatchNorm folds"
        return
    if call.norm is None:
        yield "it keeps no running statistics and normalizes with batch statistics"
    yield from _against_change(flow, norm)
    evaluating = layer.use_running_average if call.flag is None else call.flag
    if not (evaluating or call.is_frozen):
        yield "it normalizes with batch statistics: make run call the model in evaluation mode"
    factor, offset = factor_and_offset(layer.epsilon, flow.arrays(norm))
    if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        yield "its statistics or parameters are not finite"


def _against_change(flow: Flow, path: str) -> Iterator[str]:
    """Yields reasons against changing the arrays of the layer at ``path``."""
    layer: Layer = flow.seen[path].call.layer
    kind = _kind(layer)
    if kind.__call__ not in {known.__call__ for known in (*BATCH_NORMS, *LAYERS)}:
        yield f"{path} is of class {kind.__name__}, which overrides __call__"
    if path in flow.within:
        yield f"{path} is called inside {flow.within[path]}"
    if flow.calls[path] > 1:
        yield f"{path} is called {flow.calls[path]} times"
    parameters = inspect.signature(kind.__init__).parameters
    for name in _FUNCTIONS:
        if name in parameters and getattr(layer, name) is not parameters[name].default:
            yield f"{path} has a custom {name}"
    if getattr(layer, "batch_dims", None) or getattr(layer, "batch_axis", None):
        yield f"{path} has a kernel for each index of a batch axis"
    for leaf in (Leaf(path, name) for name in _names(layer)):
        if leaf not in flow.held:
            yield f"{path} shares its {leaf.name} with another layer"
        if flow.leaf_read_in.get(leaf, {path}) != {path}:
            yield f"the {leaf.name} of {path} is also read elsewhere"


def _against_before(flow: Flow, norm: str, source: Any) -> Iterator[str]:
    if not isinstance(source, Origin):
        yield f"its input comes from {source}"
        return
    layer: Layer = flow.seen[source.path].call.layer
    if isinstance(layer, BATCH_NORMS):
        yield f"its input comes from another batch norm, {source.path}"
        return
    readers = flow.layers_after[source.path] - {norm} | flow.others_after.get(source.path, set())
    if readers:
        yield f"the output of {source.path} also goes to {', '.join(sorted(readers))}"
    yield from _against_change(flow, source.path)
    if min(axes_from_the_end(flow, norm)) < -source.features:
        yield f"its axis is not a channel axis of {source.path}"
        return
    factor, _ = factor_and_offset(flow.seen[norm].call.layer.epsilon, flow.arrays(norm))
    largest = sorted(LARGEST & source.through)
    if largest and (np.iscomplexobj(factor) or (factor < 0).any()):
        yield f"{largest[0]} is between the two, and the norm's scale is negative in some channels"


def _against_after(flow: Flow, norm: str, readers: set[str]) -> Iterator[str]:
    others = flow.others_after.get(norm, set())
    if others or len(readers) != 1:
        found = ", ".join(sorted(others | readers)) or "nothing"
        yield f"its output must go to one layer only, but goes to {found}"
        return
    (path,) = readers
    call = flow.seen[norm].call
    layer: Layer = flow.seen[path].call.layer
    if not isinstance(layer, (*CONVS, *DENSE)):
        yield f"{path} is not a dense layer or convolution"
        return
    if getattr(call.layer, "activation", None) or call.kwargs.get("residual") is not None:
        yield "it applies an activation or a residual after normalizing"
    source = flow.inputs[path]
    if isinstance(source, Origin) and source.through:
        yield f"{', '.join(sorted(source.through))} is between it and {path}"
    yield from _against_change(flow, path)
    last = len(flow.seen[norm].x) - 1
    axis = canonical_axes(getattr(layer, "axis", -1), last + 1, "axis")
    if axes_from_the_end(flow, norm) != (-1,) or axis != (last,):
        yield f"its axis is not the one that {path} sums over"
    if isinstance(layer, CONVS):
        if layer.mask is not None:
            yield f"{path} has a mask"
        if _sees_zeros(layer):
            yield f"{path} pads with zeros, and the norm is not applied to the padding"


def _kind(layer: Layer) -> Any:
    """The class of a layer, without what the tools derived from it."""
    return unfrozen_class(class_of(layer))


def _names(layer: Layer) -> list[str]:
    """The names of the arrays that a layer computes with."""
    if isinstance(layer, EMBEDS):
        return ["embedding"]
    bias = ["bias"] if layer.use_bias else []
    if isinstance(layer, BATCH_NORMS):
        return ["mean", "var", *bias, *(["scale"] if layer.use_scale else [])]
    return ["kernel", *bias]


def axes_from_the_end(flow: Flow, norm: str) -> tuple[int, ...]:
    """The feature axes, counted from the end: -1 is the last."""
    seen = flow.seen[norm]
    ndim = len(seen.x)
    return tuple(a - ndim for a in canonical_axes(seen.call.layer.axis, ndim, "axis"))


def _sees_zeros(conv: Any) -> bool:
    """Whether a convolution reads zeros that are not in its input."""
    if np.any(np.asarray(conv.input_dilation or 1) != 1):
        return True
    if not isinstance(conv.padding, str):
        return any(jax.tree.leaves(conv.padding))
    # These modes pad with elements of the input, or not at all.
    exact = conv.padding in ("VALID", "CIRCULAR", "REFLECT")
    return not exact and bool(np.any(np.asarray(conv.kernel_size) != 1))
