"""Re-estimates running statistics over a data set, for the current weights."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ...core._precision import upcast
from ...core.calling._arguments import checked
from ...core.calling._explained import explained
from .._model._interface import Run, Stats
from .._model._model_of import call_model, model_of
from .._model._types import AnyModel, Batch, NnxModelT, Rngs, Variables
from .._model._where import Where
from ._collect_moments import (
    Way,
    averaged,
    gathered,
    gathering,
    norms_of_batches,
    nothing_gathered,
    pooled,
)
from ._progress import length_of, progress_bar

_log = logging.getLogger(__name__)
Method: TypeAlias = Literal["population", "precise_bn", "update_bn"]
_WAYS: dict[str, Way] = {"population": pooled, "precise_bn": pooled, "update_bn": averaged}


@overload
def recalibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    variables: Variables | None = None,
    run: Run = call_model,
    method: Method = "population",
    layer_by_layer: bool = False,
    where: Where | None = None,
    rngs: Rngs | None = None,
    progress: bool | None = None,
) -> dict[str, Any]: ...
@overload
def recalibrate(
    model: NnxModelT,
    batches: Iterable[Batch],
    *,
    variables: None = None,
    run: Run = call_model,
    method: Method = "population",
    layer_by_layer: bool = False,
    where: Where | None = None,
    rngs: None = None,
    progress: bool | None = None,
) -> NnxModelT: ...
@explained
@checked
def recalibrate(
    model: AnyModel,
    batches: Iterable[Batch],
    *,
    variables: Variables | None = None,
    run: Run = call_model,
    method: Method = "population",
    layer_by_layer: bool = False,
    where: Where | None = None,
    rngs: Rngs | None = None,
    progress: bool | None = None,
) -> Any:
    """Re-estimates the running statistics of a model's norms over ``batches``.

        mean = Σ nᵢ meanᵢ / Σ nᵢ        var = Σ nᵢ (varᵢ + |meanᵢ - mean|²) / Σ nᵢ        (batches i)

    Use it for weights without matching statistics: averaged weights (SWA, EMA, soups), a new domain (AdaBN),
    pruned or edited layers, or training with running averages that lag behind. Nothing else changes: not
    momentum, the mode, or any other variable. All norms are supported
    that keep the mean and variance of the batch, Flax's ``BatchNorm`` and your own (`RunningNorm`) included.

    By default, this takes one pass over the data, in which every layer normalizes with batch statistics, as
    in training. The input of a layer then depends on how the data is split into batches; the result is exact
    for a layer without a batch norm before it. With ``layer_by_layer``, every layer gets the same input as in
    evaluation, computed with the final statistics of all layers before it. Evaluation then equals training
    on all data as one batch. The number of passes is the length of the longest chain of batch norms, plus 1.

    Batches may have different sizes and may be sharded over devices: under jit, their statistics are those
    of all devices, so a layer's ``axis_name`` is not needed. A layer that is used several times gets one
    estimate over all its uses.

    Args:
        model: a Linen module or an NNX model; it is not modified.
        batches: an iterable of inputs of ``run``, such as a list or a data loader; ``layer_by_layer`` needs
            one that can be iterated repeatedly, such as a list.
        variables: the variables of the Linen module: ``params`` and ``batch_stats``.
        run: calls the model on a batch, as in ``lambda model, batch: model(batch["image"], train=False,
            mask=batch["mask"])``. Training or evaluation mode affects dropout and the like, but not batch
            norms with running statistics. A mask passed to a norm excludes elements from its statistics. The
            default is ``model(batch)``, with ``train=False``, ``deterministic=True`` and the like if the
            model requires such an argument.
        method: ``"population"``: as above; in one pass, this is the estimate of fvcore's PreciseBN, and
            ``"precise_bn"`` is an alias. ``"update_bn"``: like PyTorch's function of that name, gives every
            batch the same weight regardless of its size; var is the average of varᵢ · nᵢ / (nᵢ - 1),
            without the differences between the means.
        layer_by_layer: see above.
        where: selects layers by path: a pattern such as ``"stem/*"``, or a function; all other layers run
            as in evaluation.
        rngs: random keys for a Linen module whose ``run`` draws random numbers: different ones for every
            batch, as in training.
        progress: whether to show a progress bar. None shows one in a terminal or a notebook, if it takes more
            than two seconds.

    Returns:
        The variables of a Linen module, or an NNX model. Statistics keep their dtype. The logger ``jaxnorm``
        says at level INFO how far those of each layer moved.

    Raises:
        ValueError: If there is no batch, no norm with running statistics, or none that ``where`` matches; if
            it matches a layer with other statistics, such as a whitening matrix; if a statistic is not
            finite or all elements are masked; or if ``layer_by_layer`` is True and ``batches`` can be
            iterated only once.

    References:
        Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, https://arxiv.org/abs/2105.07576;
        Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, 2016,
        https://arxiv.org/abs/1603.04779.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> model = nn.BatchNorm(use_running_average=True)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1)))
        >>> batches = [jnp.array([[0.0], [4.0]]), jnp.array([[2.0]])]
        >>> variables = tools.recalibrate(model, batches, variables=variables)
        >>> print(variables["batch_stats"]["mean"], variables["batch_stats"]["var"])
        [2.] [2.6666667]
    """
    if method not in _WAYS:
        raise ValueError(f"method must be one of {', '.join(_WAYS)}; got {method!r}.")
    if isinstance(batches, Mapping) or hasattr(batches, "shape"):
        raise ValueError(
            f"batches must be an iterable of batches; got one {type(batches).__name__}. Put it in a list or, "
            f"if its first axis is over batches, pass list(batches)."
        )
    if layer_by_layer and iter(batches) is batches:
        raise ValueError(
            f"batches must be iterable several times with layer_by_layer=True; got "
            f"{type(batches).__name__}, which is exhausted after one pass. Pass a list, or an object that "
            f"can be iterated again."
        )
    subject, way = model_of(model, variables, rngs), _WAYS[method]
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError(
            "batches must hold at least one batch; got none. An iterator that was used before is empty: pass "
            "a list, or create the iterator again."
        )
    norms = norms_of_batches(subject, run, first, where, "recalibrate")
    paths, meant = list(norms), frozenset(norms)
    held = {path: subject.stats(path) for path in paths}
    n_layers = sum(held[path]["mean"].size // found.n_features for path, found in norms.items())
    length = length_of(batches)
    nothing = {path: nothing_gathered(held[path]["mean"]) for path in paths}

    def one_pass(batches: Iterable[Batch], used: Stats, *, evaluating: bool) -> Stats:
        gather = gathering(subject, run, way, evaluating, meant, False)
        stats: Stats = {path: {**used.get(path, {}), **nothing[path]} for path in paths}
        finite = []
        with progress_bar("Recalibrating", length, progress) as advance:
            for number, batch in enumerate(batches):
                _, stats = gather(subject.state, stats, batch, subject.keys(number))
                finite.append(_all_finite(stats))
                advance()
        return _estimates(stats, held, finite)

    stats = one_pass(itertools.chain([first], iterator), {}, evaluating=False)
    if layer_by_layer:
        for _ in range(n_layers):
            before, stats = stats, one_pass(batches, stats, evaluating=True)
            if jax.tree.all(jax.tree.map(np.array_equal, before, stats)):
                break
    if _log.isEnabledFor(logging.INFO):
        for path, norm in norms.items():
            _log_change(path, held[path], stats[path], norm.norm.epsilon)
    return subject.returned(stats)


def _log_change(
    path: str, old: Mapping[str, jax.Array], new: Mapping[str, jax.Array], epsilon: float
) -> None:
    mean, var, new_mean, new_var = (
        np.asarray(upcast(jnp.asarray(a)))
        for a in (old["mean"], old["var"], new["mean"], new["var"])
    )
    shift = np.max(np.abs(new_mean - mean) / np.sqrt(var + epsilon))
    ratio = np.median((new_var + epsilon) / (var + epsilon))
    message = (
        "recalibrate: the means of %s moved by up to %.2g standard deviations, the variances to %.2g "
        "times"
    )
    _log.info(message, path, shift, ratio)


@jax.jit
def _all_finite(stats: Stats) -> jax.Array:
    """Whether the gathered moments are finite; not read before the end, so that batches need not wait."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(stats)]).all()


def _estimates(stats: Stats, held: Stats, finite: Sequence[jax.Array]) -> Stats:
    """Mean and var of each layer, in the dtypes of ``held``.

    Raises:
        ValueError: If a value is not finite, or a layer had no unmasked elements.
    """
    if not all(finite):
        at = next(i for i, ok in enumerate(finite) if not ok)
        bad = [path for path, of_layer in stats.items() if not _is_finite(of_layer)]
        raise ValueError(
            f"every batch must give finite statistics; got NaN or infinity from batch {at} on (counting from "
            f"0), in {', '.join(bad)}. Look for the cause in the data and the weights with tools.examine, or "
            f"mask it."
        )
    estimates = {}
    for path, of_layer in stats.items():
        m = gathered(of_layer)
        if not np.any(m.count):
            raise ValueError(
                f"batches must have unmasked elements for every layer; got none for {path} (number of "
                f"batches: {len(finite)}). Check the mask."
            )
        estimates[path] = {
            name: jnp.where(m.count > 0, value, held[path][name]).astype(held[path][name].dtype)
            for name, value in (("mean", m.mean), ("var", m.var))
        }
    return estimates


def _is_finite(arrays: Mapping[str, jax.Array]) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values())
