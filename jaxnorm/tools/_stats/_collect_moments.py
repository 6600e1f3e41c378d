"""Gathers moments of the input of each norm over batches, alongside the layer's own state."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ...core._all_reduce import is_bound
from ...core._axes import canonical_axes, complement
from ...core._moments import moments
from ...core._pool import Moments, combine
from ...core._running import RunningStats, init_running_stats, update_running_stats
from ...norms._shared._running_norm import RunningNorm
from .._model._intercept import BATCH_NORMS, LayerCall
from .._model._interface import Model, Run, Stats
from .._model._norms import against, refused
from .._model._reuse import reused
from .._model._types import Batch, Layer, Tree
from .._model._where import Where, select

Gathered: TypeAlias = Sequence[jax.Array]
"""Mean, variance and count; the `Way` defines what is counted."""

Gather: TypeAlias = Callable[[Any, Stats, Any, Any], tuple[Any, Stats]]
"""A function of a model's state, stats, a batch and random keys that returns an output and new stats."""
_NAMES = [f"gathered_{field}" for field in Moments._fields]


Way: TypeAlias = Callable[[Gathered, Moments], Gathered]
"""Adds the moments of a batch to those gathered."""


def pooled(before: Gathered, m: Moments) -> Gathered:
    """Pools the moments of all values of all batches."""
    return combine(Moments(*before), m)


def averaged(before: Gathered, m: Moments) -> Gathered:
    """Averages the means of the batches, and their unbiased variances, with equal weights."""
    mean, var, count = before
    stats = RunningStats(mean, var, count.astype(jnp.int32))
    stats = update_running_stats(stats, m, momentum=None, unbiased=True)
    assert stats.count is not None
    return stats.mean, stats.var, stats.count.astype(count.dtype)


class Found(NamedTuple):
    """A layer with running statistics that a model calls; a ``norm`` of None is not known."""

    kind: str
    norm: RunningNorm | None
    reason: str | None  # why no tool supports it
    n_features: int  # of the input of one call


class NormOfBatches(NamedTuple):
    """A layer that keeps the mean and variance of its input, or a stack of such layers in a loop."""

    norm: RunningNorm
    n_features: int  # of one layer of the stack


def find_norms(model: Model, run: Run, batch: Batch) -> dict[str, Found]:
    """Finds the layers with running statistics, by path, in the order in which ``run`` first calls them.

    Raises:
        ValueError: If ``run`` calls none, or one has no statistics in ``model``.
    """
    found: dict[str, Found] = {}

    def note(call: LayerCall) -> Any:
        layer = Found(call.kind, call.norm, against(call.layer), _n_features(call))
        if layer.norm is not None or layer.reason is not None:
            found[call.path] = layer
        if layer.norm is not None and isinstance(call.layer, BATCH_NORMS):  # without computing it
            return jnp.zeros_like(call.x, getattr(call.layer, "dtype", None))
        return call.proceed(*call.args, **call.kwargs)

    def output(state: Tree, batch: Batch) -> Any:
        return model.run(state, {}, run, batch, note, model.keys())[0]

    jax.eval_shape(output, model.state, batch)
    if not found:
        raise ValueError(
            "the model must call at least one norm with running statistics; got a model that calls none. "
            "Check that run calls the whole model."
        )
    # What a layer said in the trace may hold tracers.
    found = {path: f._replace(norm=model.norm(path, f.norm)) for path, f in found.items()}
    for path, layer in found.items():
        needed = {"mean", "var"} if layer.norm is not None and layer.norm.of_batch else set()
        if not needed <= set(model.stats(path)):
            raise ValueError(
                f"variables must hold running statistics for every norm; got no mean and var for {path!r} in "
                f"the collection batch_stats. Pass the variables as returned by init or training, including "
                f"batch_stats."
            )
    return found


def _n_features(call: LayerCall) -> int:
    if call.norm is None:
        return 1
    shape = jnp.shape(call.x)
    return math.prod(shape[axis] for axis in canonical_axes(call.norm.axis, len(shape), "axis"))


def norms_of_batches(
    model: Model, run: Run, batch: Batch, where: Where | None, tool: str, *, averaged: bool = False
) -> dict[str, NormOfBatches]:
    """The norms that ``where`` selects; all keep the mean and variance of their input.

    With ``averaged``, they keep moving averages of just these.

    Raises:
        ValueError: As `find_norms`, or if ``where`` matches none, or a layer that keeps something else.
    """
    found = find_norms(model, run, batch)
    meant = {
        path: found[path] for path in select(where, list(found), "norm with running statistics")
    }
    reasons = {}
    for path, layer in meant.items():
        if layer.norm is None:
            reasons[path] = layer.reason
        elif not layer.norm.of_batch:
            reasons[path] = "its statistics are not the mean and variance of the batch"
        elif averaged and not layer.norm.averaged:
            reasons[path] = "it averages something else than mean and variance"
    if reasons:
        supported = "norms whose running statistics are the mean and variance of the batch"
        raise ValueError(refused(tool, supported, reasons, {p: found[p].kind for p in reasons}))
    return {
        path: NormOfBatches(layer.norm, layer.n_features)
        for path, layer in meant.items()
        if layer.norm is not None
    }


@reused
def gathering(
    model: Model, run: Run, way: Way, evaluating: bool, meant: frozenset[str], outputs: bool
) -> Gather:
    """Returns a compiled function that computes ``run``'s output and new stats.

    Layers at the paths ``meant`` normalize with their running statistics if ``evaluating``, and otherwise
    with batch statistics. All others that the tools know normalize with their running statistics. The
    output is None without ``outputs``: then nothing is computed that no statistics need.
    """

    def answer(call: LayerCall) -> Any:
        if call.norm is None:
            return call.proceed(*call.args, **call.kwargs)
        if call.path not in meant:
            return normalized(call, evaluating=True)
        add_batch(call, way)
        return normalized(call, evaluating=evaluating)

    @jax.jit
    def gather(state: Tree, stats: Stats, batch: Batch, keys: Any) -> tuple[Any, Stats]:
        output, stats, _ = model.run(state, stats, run, batch, answer, keys)
        return output if outputs else None, stats

    return gather


def add_batch(call: LayerCall, way: Way) -> None:
    """Adds the moments of a norm's input to those gathered for it."""
    before, m = [call.read(name) for name in _NAMES], moments_of(call)
    if before[0].shape != m.mean.shape:
        raise ValueError(
            f"running statistics must have the shape of their layer's features; got a mean of shape "
            f"{before[0].shape} for features of shape {m.mean.shape} at {call.path!r}. Pass the variables "
            f"of this model, and batches like those it is trained on."
        )
    for name, value in zip(_NAMES, way(before, m), strict=True):
        call.write(name, value)


def nothing_gathered(mean: jax.Array) -> dict[str, jax.Array]:
    """The initial gathered moments of a layer with this ``mean``, before the first batch."""
    stats = init_running_stats(mean.shape, jnp.promote_types(mean.dtype, jnp.float32))
    return dict(zip(_NAMES, (stats.mean, stats.var, jnp.zeros_like(stats.var)), strict=True))


def gathered(stats: Mapping[str, jax.Array]) -> Moments:
    """The gathered moments among the arrays of a layer."""
    return Moments(*(stats[name] for name in _NAMES))


def moments_of(call: LayerCall) -> Moments:
    """Moments of a norm's input, with the feature shape."""
    x, norm = jnp.asarray(call.x), call.norm
    assert norm is not None
    features = canonical_axes(norm.axis, x.ndim, "axis")
    reduced = complement(features, x.ndim)
    m = moments(x, reduced, mask=call.mask, **_devices_here(call.layer))
    return Moments(*(leaf.squeeze(reduced) for leaf in m))


def normalized(call: LayerCall, *, evaluating: bool) -> Any:
    """The output of a norm, with running statistics if ``evaluating``, else with batch statistics."""
    return call.evaluated(evaluating=evaluating, **_devices_here(call.layer))


def _devices_here(layer: Layer) -> dict[str, Any]:
    """The layer's device axes and groups, if the axes are bound here. Jit over a mesh needs none."""
    names = getattr(layer, "axis_name", None)
    names = (names,) if isinstance(names, str) else tuple(names or ())
    bound = bool(names) and all(map(is_bound, names))
    devices = ("axis_name", "axis_index_groups")
    return {name: getattr(layer, name, None) if bound else None for name in devices}
