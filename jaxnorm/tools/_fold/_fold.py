"""Folds batch norms into adjacent layers."""

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import jax
import numpy as np
from flax.errors import ModifyScopeVariableError

from ...core.calling._arguments import checked
from ...core.calling._explained import explained
from .._model._intercept import BATCH_NORMS, LayerCall
from .._model._interface import Model, Run
from .._model._model_of import call_model, model_of
from .._model._reuse import reused
from .._model._types import Batch, Layer, ModelT, Rngs, Tree, Variables
from .._model._where import Where, select
from .._stats._collect_moments import find_norms
from .._stats._progress import progress_bar
from ._arrays import arrays_of, with_norms
from ._dataflow import follow
from ._eligibility import Pair, is_norm_or_layer, pair_of
from ._folded import without_norms
from ._measure import difference, fold_of, measuring


class Folded(NamedTuple, Generic[ModelT]):
    """The result of `fold`.

    Attributes:
        model: the Linen module or NNX model without the folded batch norms.
        variables: the variables of the Linen module; None for an NNX model, which holds its own.
        difference: the largest absolute difference between the floating or complex outputs of the two
            models on the batch.
        pairs: the path of each folded batch norm, with the path of the layer it is folded into.
        refused: the path of each norm with running statistics that is not folded, with the reason.
        sizes: the number of values in the arrays of the model, before and after.

    Example:
        >>> import flax.linen as nn
        >>> from jaxnorm import tools
        >>> pairs, refused = {"norm": "conv"}, {"last": "its input comes from add"}
        >>> tools.Folded(nn.Dense(3), {}, difference=1e-7, pairs=pairs, refused=refused, sizes=(920, 896))
        Folded 1 of 2 norms: 896 values are left of 920. The outputs differ by at most 1e-07.
          norm → conv
        Not folded:
          last: its input comes from add
    """

    model: ModelT
    variables: Tree
    difference: float
    pairs: dict[str, str]
    refused: dict[str, str]
    sizes: tuple[int, int]

    def __repr__(self) -> str:
        before, after = self.sizes
        lines = [
            f"Folded {len(self.pairs)} of {len(self.pairs) + len(self.refused)} norms: {after:,} values are "
            f"left of {before:,}. The outputs differ by at most {self.difference:.2g}.",
            *(f"  {norm} → {layer}" for norm, layer in self.pairs.items()),
        ]
        if self.refused:
            lines += ["Not folded:", *(f"  {norm}: {why}" for norm, why in self.refused.items())]
        return "\n".join(lines)


@explained
@checked
def fold(
    model: ModelT,
    batch: Batch,
    *,
    variables: Variables | None = None,
    run: Run = call_model,
    where: Where | None = None,
    partial: bool = False,
    rngs: Rngs | None = None,
    progress: bool | None = None,
) -> Folded[ModelT]:
    """Folds the batch norms of a model into adjacent layers, for evaluation.

        kernel' = a · kernel        bias' = a · bias + b        a = scale / √(var + ε),  b = β - a · mean

    with the norm's scale and bias β. A norm folds into a convolution (transposed, grouped, dilated), dense
    layer or embedding before it or, if that is not possible, into a dense layer or a convolution without
    zero padding after it. Adjacent layers are found by following the computation of ``run``. Layers must be
    Flax's own; batch norms may be Flax's or jaxnorm's. The activation or residual of a norm is kept.

    A norm is folded only if the result is exact up to rounding: the layer is used once, by the norm alone,
    and nothing else reads its kernel. Operations between the two may only move values within their channel
    (slices, casts, merged axes), or take a maximum, as in max pooling, if no scale is negative. The
    arithmetic is in float64, and the kernel keeps its dtype.

    Args:
        model: a Linen module or an NNX model; it is not modified.
        batch: input of ``run``: some examples, on which the two models are compared.
        variables: the variables of the Linen module: ``params`` and ``batch_stats``.
        run: calls the model on a batch for evaluation, as in ``lambda model, batch: model(batch["image"],
            train=False)``; the default is that of `recalibrate`.
        where: selects batch norms by path: a pattern such as ``"stem/*"``, or a function; the others stay.
        partial: whether batch norms that cannot be folded may stay; if False, they are an error.
        rngs: random keys for a Linen module whose ``run`` draws random numbers.
        progress: whether to show a progress bar, as in `recalibrate`.

    Returns:
        The smaller model, its variables, and a report. Folded batch norms always evaluate, whatever flag or
        mask is given.

    Raises:
        ValueError: If the model calls no batch norm with running statistics, ``where`` matches none of
            them, or one of them cannot be folded and ``partial`` is False.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> model = nn.Sequential(
        ...     [nn.Conv(8, (3, 3)), nn.BatchNorm(use_running_average=True), nn.relu]
        ... )
        >>> x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
        >>> folded = tools.fold(model, x, variables=model.init(jax.random.key(1), x))
        >>> print(folded.pairs, folded.difference < 1e-5)
        {'layers_1': 'layers_0'} True
        >>> print(jax.tree.map(jnp.shape, folded.variables))
        {'params': {'layers_0': {'bias': (8,), 'kernel': (3, 3, 3, 8)}}}
        >>> y = folded.model.apply(folded.variables, x)
    """
    with progress_bar("Folding", 4, progress) as advance:
        attempt = functools.partial(
            _fold, model, batch, variables, run, where, partial, rngs, advance
        )
        try:
            return attempt(evaluates=True)
        except ModifyScopeVariableError:  # some norms train, and are refused
            return attempt(evaluates=False)


def _fold(
    model: ModelT,
    batch: Batch,
    variables: Variables | None,
    run: Run,
    where: Where | None,
    partial: bool,
    rngs: Rngs | None,
    advance: Callable[[], None],
    *,
    evaluates: bool,
) -> Folded[ModelT]:
    subject_of = functools.partial(model_of, rngs=rngs, evaluates=evaluates)
    found = find_norms(subject_of(model, variables), run, batch)
    subject = subject_of(model, variables, is_watched=is_norm_or_layer)
    advance()
    flow = follow(subject, run, batch)
    advance()
    norms = [
        path
        for path, seen in flow.seen.items()
        if path in found or isinstance(seen.call.layer, BATCH_NORMS)
    ]
    outcomes = {path: pair_of(flow, path) for path in select(where, norms, "batch norm")}
    folds = [fold_of(flow, outcome) for outcome in outcomes.values() if isinstance(outcome, Pair)]
    arrays = [arrays_of(flow, fold.pair) for fold in folds]
    y, wrong = measuring(subject, run, tuple(folds))(subject.state, batch, subject.keys(), arrays)
    advance()
    refused = {path: why for path, why in {**outcomes, **wrong}.items() if isinstance(why, str)}
    if refused and not partial:
        reasons = "; ".join(f"{path!r} because {reason}" for path, reason in refused.items())
        raise ValueError(
            f"every batch norm must fold exactly into an adjacent layer; got {len(refused)} of "
            f"{len(outcomes)} that cannot: {reasons}. Change the model there, or keep these batch norms "
            f"with partial=True or a where that excludes them."
        )
    kept = [each for each in zip(folds, arrays, strict=True) if each[0].pair.norm not in refused]
    changed = {fold.pair.layer: of_pair.layer for fold, of_pair in kept}
    for layer in changed:
        around = [fold.pair for fold, _ in kept if fold.pair.layer == layer]
        if len(around) > 1:
            changed[layer] = with_norms(flow, around)
    dtypes = {fold.pair.norm: fold.dtypes for fold, _ in kept}
    smaller, its_variables = without_norms(model, variables, changed, dtypes)
    result = subject_of(smaller, its_variables, is_watched=_watch_nothing)
    z = _evaluating(result, run)(result.state, batch, result.keys())
    away = difference(flow, y, z)
    advance()
    if not away.is_rounding:
        raise ValueError(
            f"the folded model must compute what the model computes; the outputs differ by {away}, more "
            f"than rounding. Check that run returns the same for the same batch, or exclude batch norms with "
            f"where."
        )
    return Folded(
        smaller,
        its_variables,
        away.largest,
        {fold.pair.norm: fold.pair.layer for fold, _ in kept},
        refused,
        (_size(subject), _size(result)),
    )


@reused
def _evaluating(model: Model, run: Run) -> Callable[[Tree, Batch, Any], Any]:
    """The compiled output of ``run``, a function of the model's state, a batch and random keys."""

    @jax.jit
    def compiled(state: Tree, batch: Batch, keys: Any) -> Any:
        return model.run(state, {}, run, batch, _unchanged, keys)[0]

    return compiled


def _watch_nothing(layer: Layer) -> bool:
    return False


def _size(subject: Model) -> int:
    """The number of values in the arrays of a model."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(subject.state))


def _unchanged(call: LayerCall) -> Any:
    return call.proceed(*call.args, **call.kwargs)
