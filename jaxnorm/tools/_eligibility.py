"""Which batch norm folds into which layer, and why another does not."""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from ..core._axes import canonical_axes
from ._affine import factor_and_offset
from ._dataflow import LARGEST, Flow, Leaf, Origin
from ._models import BATCH_NORMS

CONVS = (nn.Conv, nnx.Conv)
TRANSPOSED = (nn.ConvTranspose, nnx.ConvTranspose)
DENSE = (nn.Dense, nn.DenseGeneral, nnx.Linear, nnx.LinearGeneral)
EMBEDS = (nn.Embed, nnx.Embed)
LAYERS = (*CONVS, *TRANSPOSED, *DENSE, *EMBEDS)

# Functions that users may put in the place of a layer's own: then nobody knows what it computes.
_FUNCTIONS = ("promote_dtype", "dot_general", "dot_general_cls")
_FUNCTIONS += ("conv_general_dilated", "conv_general_dilated_cls")


class Pair(NamedTuple):
    """A batch norm, and the layer that it folds into."""

    norm: str
    layer: str
    before: bool  # whether the layer is the one before the norm


def pair_of(flow: Flow, norm: str) -> Pair | str:
    """The layer that the batch norm at ``norm`` folds into, exactly; or the reason that there is none."""
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
    return f"not into what is before it: {not_before}; nor into what is after it: {not_after}"


def _against_norm(flow: Flow, norm: str) -> Iterator[str]:
    call = flow.seen[norm].call
    layer: Any = call.layer
    if not getattr(layer, "track_running_stats", True):
        yield "it keeps no running statistics, and normalizes with those of the batch"
    yield from _against_change(flow, norm)
    flag = call.args[1] if len(call.args) > 1 else call.kwargs.get("use_running_average")
    if not (layer.use_running_average if flag is None else flag):
        yield "it normalizes with the statistics of the batch: have run call the model for evaluation"
    factor, offset = factor_and_offset(layer.epsilon, flow.arrays(norm))
    if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
        yield "its statistics or parameters are not finite"


def _against_change(flow: Flow, path: str) -> Iterator[str]:
    """What speaks against any change of what the layer at ``path`` holds."""
    layer: Any = flow.seen[path].call.layer
    kind = _kind(layer)
    if kind.__call__ not in {known.__call__ for known in (*BATCH_NORMS, *LAYERS)}:
        yield f"{path} is of a class with a __call__ of its own, {kind.__name__}"
    if path in flow.within:
        yield f"{path} is called within {flow.within[path]}"
    if flow.calls[path] > 1:
        yield f"{path} is called {flow.calls[path]} times"
    parameters = inspect.signature(kind.__init__).parameters
    for name in _FUNCTIONS:
        if name in parameters and getattr(layer, name) is not parameters[name].default:
            yield f"{path} has a {name} of its own"
    if getattr(layer, "batch_dims", None) or getattr(layer, "batch_axis", None):
        yield f"{path} has a kernel for each index of a batch axis"
    for leaf in (Leaf(path, name) for name in _names(layer)):
        if leaf not in flow.held:
            yield f"{path} shares its {leaf.name} with another layer"
        if flow.leaf_read_in.get(leaf, {path}) != {path}:
            yield f"the {leaf.name} of {path} is also read outside of it"


def _against_before(flow: Flow, norm: str, source: Any) -> Iterator[str]:
    if not isinstance(source, Origin):
        yield f"its input comes from {source}"
        return
    layer: Any = flow.seen[source.path].call.layer
    if isinstance(layer, BATCH_NORMS):
        yield f"its input comes from another batch norm, {source.path}"
        return
    readers = flow.layers_after[source.path] - {norm} | flow.others_after.get(source.path, set())
    if readers:
        yield f"what {source.path} returns is also read by {', '.join(sorted(readers))}"
    yield from _against_change(flow, source.path)
    if min(axes_from_the_end(flow, norm)) < -source.features:
        yield f"its axis is not that of the channels of {source.path}"
        return
    factor, _ = factor_and_offset(flow.seen[norm].call.layer.epsilon, flow.arrays(norm))
    largest = sorted(LARGEST & source.through)
    if largest and (np.iscomplexobj(factor) or (factor < 0).any()):
        yield f"between the two is {largest[0]}, and some of its scale is negative"


def _against_after(flow: Flow, norm: str, readers: set[str]) -> Iterator[str]:
    others = flow.others_after.get(norm, set())
    if others or len(readers) != 1:
        found = ", ".join(sorted(others | readers)) or "nothing"
        yield f"what reads its output must be one layer, and is {found}"
        return
    (path,) = readers
    call = flow.seen[norm].call
    layer: Any = flow.seen[path].call.layer
    if not isinstance(layer, (*CONVS, *DENSE)):
        yield f"{path} is no dense layer or convolution"
        return
    if getattr(call.layer, "activation", None) or call.kwargs.get("residual") is not None:
        yield "it has an activation or a residual, which come after it"
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
            yield f"{path} pads with zeros, to which the norm is not applied"


def _kind(layer: Any) -> Any:
    """The class of a layer; a watched NNX layer is of one made of it."""
    return type(layer) if isinstance(layer, nn.Module) else type(layer).__bases__[0]


def _names(layer: Any) -> list[str]:
    """The arrays that a layer computes with."""
    if isinstance(layer, EMBEDS):
        return ["embedding"]
    bias = ["bias"] if layer.use_bias else []
    if isinstance(layer, BATCH_NORMS):
        return ["mean", "var", *bias, *(["scale"] if layer.use_scale else [])]
    return ["kernel", *bias]


def axes_from_the_end(flow: Flow, norm: str) -> tuple[int, ...]:
    """The axes of the features, -1 the last."""
    seen = flow.seen[norm]
    ndim = len(seen.x)
    return tuple(a - ndim for a in canonical_axes(seen.call.layer.axis, ndim, "axis"))


def _sees_zeros(conv: Any) -> bool:
    """Whether a convolution reads zeros where there is no input."""
    if np.any(np.asarray(conv.input_dilation or 1) != 1):
        return True
    if not isinstance(conv.padding, str):
        return any(jax.tree.leaves(conv.padding))
    # These read the input again, or nothing but it.
    exact = conv.padding in ("VALID", "CIRCULAR", "REFLECT")
    return not exact and bool(np.any(np.asarray(conv.kernel_size) != 1))
