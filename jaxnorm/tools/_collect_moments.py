"""Gathers moments of the input of each batch norm over batches, alongside the layer's own state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..core._all_reduce import AxisIndexGroups, AxisName, is_bound
from ..core._axes import canonical_axes, complement
from ..core._moments import moments
from ..core._pool import Moments, combine
from ..core._running import RunningStats, init_running_stats, update_running_stats
from ._intercept import LayerCall
from ._model import Model, Run, Stats

Gathered: TypeAlias = Sequence[jax.Array]
"""Mean, variance and count; the `Way` defines what is counted."""

Gather: TypeAlias = Callable[[Any, Stats, Any, jax.Array], tuple[Any, Stats]]
_NAMES = [f"gathered_{field}" for field in Moments._fields]


class BatchNormOptions(NamedTuple):
    """The options of a batch norm, Flax's or jaxnorm's, that the tools need."""

    momentum: Any
    epsilon: float
    unbiased: bool


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


def find_batch_norms(model: Model, run: Run, batch: Any) -> dict[str, BatchNormOptions]:
    """Finds the batch norms that keep running statistics, in the order in which ``run`` first calls them.

    Raises:
        ValueError: If ``run`` calls no such batch norm, or one of them has no statistics in ``model``.
    """
    found: dict[str, BatchNormOptions] = {}

    def note(call: LayerCall) -> Any:
        if getattr(call.layer, "track_running_stats", True):
            options = {name: getattr(call.layer, name) for name in ("momentum", "epsilon")}
            found[call.path] = BatchNormOptions(
                **options, unbiased=getattr(call.layer, "unbiased", False)
            )
        return jnp.zeros_like(call.x, getattr(call.layer, "dtype", None))

    jax.eval_shape(
        lambda state, batch: model.run(state, {}, run, batch, note)[0], model.state, batch
    )
    if not found:
        raise ValueError(
            "the model must call at least one BatchNorm with running statistics, from Flax or jaxnorm; got "
            "a model that calls none. Check that run calls the whole model."
        )
    for path in found:
        if not {"mean", "var"} <= set(model.stats(path)):
            raise ValueError(
                f"variables must hold running statistics for every batch norm; got no mean and var for "
                f"{path!r} in the collection batch_stats. Pass the variables as returned by init or "
                f"training, including batch_stats."
            )
    return found


def gathering(
    model: Model, run: Run, way: Way, *, evaluating: bool, meant: Callable[[str], bool]
) -> Gather:
    """Returns a function of state, stats, batch and number that computes ``run``'s output and new stats.

    Layers for which ``meant`` is True normalize with their running statistics if ``evaluating``, and
    otherwise with batch statistics. All other layers normalize with their running statistics.
    """

    def answer(call: LayerCall) -> Any:
        if not getattr(call.layer, "track_running_stats", True):
            return call.proceed(*call.args, **call.kwargs)
        if not meant(call.path):
            return normalized(call, evaluating=True)
        add_batch(call, way)
        return normalized(call, evaluating=evaluating)

    def gather(state: Any, stats: Stats, batch: Any, number: jax.Array) -> tuple[Any, Stats]:
        output, stats, _ = model.run(state, stats, run, batch, answer, number)
        return output, stats

    return gather


def add_batch(call: LayerCall, way: Way) -> None:
    """Adds the moments of a batch norm's input to those gathered for it."""
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
    """Moments of a batch norm's input, with the feature shape."""
    x = jnp.asarray(call.x)
    features = canonical_axes(call.layer.axis, x.ndim, "axis")
    reduced = complement(features, x.ndim)
    axis_name, groups = _devices_here(call.layer)
    m = moments(
        x, reduced, mask=call.kwargs.get("mask"), axis_name=axis_name, axis_index_groups=groups
    )
    return Moments(*(leaf.squeeze(reduced) for leaf in m))


def normalized(call: LayerCall, *, evaluating: bool) -> Any:
    """The output of a batch norm, with running statistics if ``evaluating``, else with batch statistics."""
    options = {k: v for k, v in call.kwargs.items() if k != "use_running_average"}
    axis_name, groups = _devices_here(call.layer)
    devices = {"axis_name": axis_name, "axis_index_groups": groups}
    if isinstance(call.layer, nn.Module):
        layer = call.layer.clone(parent=call.layer.scope, use_running_average=evaluating, **devices)
        return layer(call.x, **options)
    for name, value in devices.items():
        setattr(call.layer, name, value)
    return call.unfrozen(call.x, use_running_average=evaluating, **options)


def _devices_here(layer: Any) -> tuple[AxisName | None, AxisIndexGroups | None]:
    """The layer's device axes and groups, if the axes are bound here. Jit over a mesh needs none."""
    names = layer.axis_name
    names = (names,) if isinstance(names, str) else tuple(names or ())
    if names and all(map(is_bound, names)):
        return layer.axis_name, layer.axis_index_groups
    return None, None
