"""The arrays of layers with batch norms folded in."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._model._flax_layers import CONVS
from ._affine import factor_and_offset, into_layer_after, into_layer_before
from ._dataflow import Flow, n_features
from ._eligibility import Pair, axes_from_the_end
from ._folded import Arrays, array_like


class PairArrays(NamedTuple):
    """The arrays of a batch norm and of the layer that it folds into."""

    layer: Arrays  # with the norm folded in
    factor: np.ndarray  # of the norm
    offset: np.ndarray


def arrays_of(flow: Flow, pair: Pair) -> PairArrays:
    """The arrays of a pair."""
    return PairArrays(with_norms(flow, [pair]), *_factor_and_offset(flow, pair))


def with_norms(flow: Flow, pairs: Sequence[Pair]) -> dict[str, jax.Array]:
    """The arrays of the one layer of ``pairs`` with their norms folded in, rounded once."""
    held = flow.arrays(pairs[0].layer)
    new: dict[str, np.ndarray] = {}
    for pair in pairs:
        dtype = held["kernel"].dtype if "kernel" in held and pair is pairs[-1] else None
        new = _with_norm(flow, pair, {**held, **new}, dtype)
    return {name: array_like(held.get(name), a, held.get("kernel")) for name, a in new.items()}


def _with_norm(
    flow: Flow, pair: Pair, layer: Mapping[str, Any], dtype: Any
) -> dict[str, np.ndarray]:
    """The arrays of a pair's layer with the norm folded in, given its arrays without it.

    They are in float64, but the kernel of a layer before the norm has ``dtype`` if that is not None.
    """
    into, (factor, offset) = flow.seen[pair.layer], _factor_and_offset(flow, pair)
    kind: Any = into.call.layer
    if pair.before:
        features, axes = into.y[-n_features(kind) :], axes_from_the_end(flow, pair.norm)
        ones = [n if i - len(features) in axes else 1 for i, n in enumerate(features)]
        affine = (np.broadcast_to(a.reshape(ones), features) for a in (factor, offset))
        transposed = getattr(kind, "transpose_kernel", False)
        return into_layer_before(layer, *affine, transposed=transposed, dtype=dtype)
    is_conv = isinstance(kind, CONVS)
    return into_layer_after(
        layer,
        factor,
        offset,
        groups=kind.feature_group_count if is_conv else 1,
        window=layer["kernel"].ndim - 2 if is_conv else 0,
    )


def _factor_and_offset(flow: Flow, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    return factor_and_offset(flow.seen[pair.norm].call.layer.epsilon, flow.arrays(pair.norm))
