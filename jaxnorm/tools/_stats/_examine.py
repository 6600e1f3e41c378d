"""Examines the norms of a model on a batch, to find out why evaluation differs from training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core._pool import Moments
from ...core._running import RunningStats
from ...core.calling._arguments import checked
from ...core.calling._explained import explained
from ...norms._shared._running_norm import RunningNorm
from .._model._interface import Model, Run
from .._model._model_of import call_model, model_of
from .._model._types import AnyModel, Batch, Rngs, Tree, Variables
from .._model._where import Where
from ._collect_moments import (
    gathered,
    gathering,
    norms_of_batches,
    nothing_gathered,
    pooled,
)
from ._examination import Examination, LayerHealth
from ._progress import progress_bar


@explained
@checked
def examine(
    model: AnyModel,
    batch: Batch,
    *,
    variables: Variables | None = None,
    run: Run = call_model,
    where: Where | None = None,
    rngs: Rngs | None = None,
    progress: bool | None = None,
) -> Examination:
    """Compares the input of every norm with running statistics in a model with these statistics.

        z  = |batch mean - running mean| / √(running var + ε)
        KL = ½ (log((r + ε) / (b + ε)) + (b + ε + (batch mean - running mean)²) / (r + ε) - 1)

    per channel, with batch variance b and running variance r. Each layer is examined with the layers before
    it in training mode, the mode in which its running statistics were collected. So its numbers show its
    own problems, not those of earlier layers.

    Args:
        model: a Linen module or an NNX model; it is not modified.
        batch: input of ``run``: a few hundred examples like those the model is trained on.
        variables: the variables of the Linen module: ``params`` and ``batch_stats``.
        run: calls the model on the batch, as in `recalibrate`.
        where: selects layers by path: a pattern such as ``"stem/*"``, or a function. None selects all.
        rngs: random keys for a Linen module whose ``run`` draws random numbers.
        progress: whether to show a progress bar, as in `recalibrate`.

    Returns:
        An Examination, a tree of numbers and per-channel statistics: use ``print(examination)``,
        ``examination.layers``, ``examination.advice()``, ``examination.figure()``.

    Raises:
        ValueError: If the model calls no norm with running statistics, ``where`` matches none, or matches a
            layer with other statistics, such as a whitening matrix, or running statistics are missing.

    Example:
        >>> import flax.linen as nn
        >>> from jaxnorm import tools
        >>> x = 5 + jax.random.normal(jax.random.key(0), (256, 8))
        >>> model = nn.BatchNorm(use_running_average=True)
        >>> examination = tools.examine(model, x, variables=model.init(jax.random.key(1), x))
        >>> print(examination.layers[""].updated, round(examination.layers[""].kl))
        False 12
        >>> print(examination.advice()[""][:47])
        The running statistics are those of a new layer
    """
    with progress_bar("Examining", 3, progress) as advance:
        subject = model_of(model, variables, rngs)
        norms = norms_of_batches(subject, run, batch, where, "examine")
        advance()
        paths = list(norms)
        held = {path: subject.stats(path) for path in paths}
        nothing = {path: nothing_gathered(of_layer["mean"]) for path, of_layer in held.items()}
        outputs = {}
        stats: Tree = None
        for evaluating in (True, False):
            gather = gathering(subject, run, pooled, evaluating, frozenset(paths), True)
            outputs[evaluating], stats = gather(subject.state, nothing, batch, subject.keys(0))
            advance()
        moments = {path: jax.device_get(gathered(stats[path])) for path in paths}
        running = {path: _running(held[path]) for path in paths}
        health = {
            path: _health(subject, path, norms[path].norm, moments[path], running[path])
            for path in paths
        }
        change = _change(outputs[True], outputs[False])
    return Examination(health, moments, running, change)


def _running(held: Any) -> RunningStats:
    def wide(array: Any) -> Any:
        return np.asarray(array).astype(np.promote_types(array.dtype, np.float32))

    return RunningStats(wide(held["mean"]), wide(held["var"]))


def _health(
    subject: Model, path: str, norm: RunningNorm, batch: Moments, running: RunningStats
) -> LayerHealth:
    params = {name: np.asarray(array) for name, array in subject.params(path).items()}
    var = np.asarray(running.var + norm.epsilon)
    shift = np.abs(batch.mean - running.mean)
    ratio = (batch.var + norm.epsilon) / var
    kl = (ratio - 1 - np.log(ratio) + shift**2 / var) / 2
    dead = np.asarray(batch.var) == 0
    if "scale" in params:  # a conditional norm has one for each class
        dead |= (params["scale"] == 0).reshape(-1, *var.shape).all(0)
    finite = all(np.isfinite(a).all() for a in (running.mean, running.var, *params.values()))
    return LayerHealth(
        channels=int(np.size(var)),
        values=float(np.min(batch.count)),
        z=float(np.max(shift / np.sqrt(var))),
        kl=float(np.mean(kl)),
        var_ratio=float(np.median(ratio)),
        tiny=int(np.sum(np.asarray(running.var) < norm.epsilon)),
        dead=int(np.sum(dead)),
        updated=bool(np.any(np.asarray(running.mean) != 0) or np.any(np.asarray(running.var) != 1)),
        finite=bool(finite),
        batch_finite=bool(np.isfinite(batch.mean).all() and np.isfinite(batch.var).all()),
    )


def _change(evaluation: Any, training: Any) -> float:
    """|evaluation - training| / |training| over all floating and complex leaves."""

    def norm(leaves: list[Any]) -> float:
        return float(np.sqrt(sum(np.sum(np.square(np.abs(leaf))) for leaf in leaves)))

    pairs = zip(jax.tree.leaves(evaluation), jax.tree.leaves(training), strict=True)
    inexact = [
        (np.asarray(a, np.complex128), np.asarray(b, np.complex128))
        for a, b in pairs
        if jnp.issubdtype(jnp.result_type(a), jnp.inexact)
    ]
    change, size = norm([a - b for a, b in inexact]), norm([b for _, b in inexact])
    return change / size if size else (np.inf if change else 0.0)
