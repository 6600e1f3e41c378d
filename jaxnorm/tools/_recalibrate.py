"""Running statistics estimated again, over a data set, for the weights as they are now."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..core._arguments import checked
from ..core._explained import explained
from ._collect_moments import (
    Gather,
    Way,
    averaged,
    find_batch_norms,
    gathered,
    gathering,
    nothing_gathered,
    pooled,
)
from ._intercept import Where, select
from ._model import Run, Stats
from ._models import call_model, model_of

Step: TypeAlias = Callable[[Any, Stats, Any, int], tuple[Stats, jax.Array]]
Method: TypeAlias = Literal["population", "precise_bn", "update_bn"]
_WAYS: dict[str, Way] = {"population": pooled, "precise_bn": pooled, "update_bn": averaged}


@explained
@checked
def recalibrate(
    model: Any,
    batches: Iterable[Any],
    *,
    variables: Any = None,
    run: Run = call_model,
    method: Method = "population",
    layer_by_layer: bool = False,
    where: Where | None = None,
    rngs: Any = None,
    progress: bool = False,
) -> Any:
    """The model with the running statistics of its batch norms estimated over ``batches``.

        mean = Σ nᵢ meanᵢ / Σ nᵢ        var = Σ nᵢ (varᵢ + |meanᵢ - mean|²) / Σ nᵢ        (batches i)

    for weights that did not come with statistics of their own: averaged weights (SWA, EMA, soups), a new
    domain (AdaBN), pruned or edited layers, training whose running averages lag behind. Nothing else
    changes: not momentum, nor a mode, nor any other variable. Flax's own ``BatchNorm`` is taken as ours.

    In one pass over the data, every layer normalizes with the statistics of its batch as in training, so
    that what reaches a layer depends on how the data is cut into batches; for a layer before which there is
    none, the result is exact. ``layer_by_layer``, every layer is given what evaluation gives it: with the
    final statistics of all layers before. Then evaluation equals training on all data as one batch. That
    takes as many passes over the data as batch norms stand one behind the other, and one more.

    Batches may be of any sizes, and sharded over devices: under jit their statistics are those of all
    devices, so that a layer's ``axis_name`` is not needed. A layer that is used several times has one
    estimate, over all its uses.

    Args:
        model: a Linen module, or an NNX model, which stays as it is.
        batches: what ``run`` takes, one after the other, as a list or a loader has them; for
            ``layer_by_layer`` anything that can be gone through again, such as a list.
        variables: of the Linen module: ``params`` and ``batch_stats``.
        run: calls the model on a batch, as in ``lambda model, batch: model(batch["image"], train=False,
            mask=batch["mask"])``. Whether it says training or evaluation matters to dropout and the like, but
            not to batch norms. A mask that reaches them decides what counts.
        method: ``"population"``: as above; in one pass it is what fvcore's PreciseBN estimates, and
            ``"precise_bn"`` is another name for it. ``"update_bn"``: as PyTorch's function of that name does,
            every batch counts the same whatever its size, and var is the average of varᵢ · nᵢ / (nᵢ - 1),
            without what the means differ by.
        layer_by_layer: see above.
        where: which layers, by path: a pattern such as ``"stem/*"`` or a function; all others are used as in
            evaluation.
        rngs: for a Linen module whose ``run`` draws random numbers: others for every batch, as in training.
        progress: whether to show a progress bar.

    Returns:
        Variables, of a Linen module; or an NNX model. Statistics keep their dtype.

    Raises:
        ValueError: there is no batch, no batch norm or none that ``where`` means; a statistic is not finite;
            nothing is counted; or the batches can be gone through only once where that is not enough.

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
            f"batches must be several, one after the other; got one {type(batches).__name__}. Put it in a "
            f"list, or if its first axis counts batches, make it one: list(batches)."
        )
    if layer_by_layer and iter(batches) is batches:
        raise ValueError(
            f"batches must be something to go through several times, as layer_by_layer=True does; got "
            f"{type(batches).__name__}, which ends after once. Give a list, or an object that can be "
            f"iterated anew."
        )
    subject, way = model_of(model, variables, rngs), _WAYS[method]
    iterator = iter(batches)
    first = next(iterator, None)
    from rich.progress import track  # not for those who only import this package

    if first is None:
        raise ValueError(
            "batches must hold at least one batch; got none. An iterator that was used before is empty: give "
            "a list, or make the iterator anew."
        )
    paths = select(where, list(find_batch_norms(subject, run, first)), "batch norm")
    meant = set(paths).__contains__
    held = {path: subject.stats(path) for path in paths}
    length = len(batches) if isinstance(batches, Sized) else None
    nothing = {path: nothing_gathered(held[path]["mean"]) for path in paths}

    def one_pass(step: Step, batches: Iterable[Any], used: Stats) -> Stats:
        stats: Stats = {path: {**used.get(path, {}), **nothing[path]} for path in paths}
        finite = []
        tracked = track(batches, "Recalibrating", length, disable=not progress)
        for number, batch in enumerate(tracked):
            stats, ok = step(subject.state, stats, batch, number)
            finite.append(ok)
        return _estimates(stats, held, finite)

    step = _step(gathering(subject, run, way, evaluating=False, meant=meant))
    stats = one_pass(step, itertools.chain([first], iterator), {})
    if layer_by_layer:
        step = _step(gathering(subject, run, way, evaluating=True, meant=meant))
        for _ in paths:
            before, stats = stats, one_pass(step, batches, stats)
            if jax.tree.all(jax.tree.map(np.array_equal, before, stats)):
                break
    return subject.returned(stats)


def _step(gather: Gather) -> Step:
    """Adds a batch to the stats, compiled; and says whether they are finite."""

    @jax.jit
    def step(state: Any, stats: Stats, batch: Any, number: jax.Array) -> tuple[Stats, jax.Array]:
        _, stats = gather(state, stats, batch, number)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(stats)]
        return stats, jnp.stack(finite).all()

    return step


def _estimates(stats: Stats, held: Stats, finite: Sequence[jax.Array]) -> Stats:
    """Mean and var of each layer in the dtypes that it has ``held`` them in.

    Raises:
        ValueError: something is not finite, or was not counted.
    """
    if not all(finite):
        at = next(i for i, ok in enumerate(finite) if not ok)
        bad = [path for path, of_layer in stats.items() if not _is_finite(of_layer)]
        raise ValueError(
            f"every batch must give finite statistics; got NaN or infinity from batch {at} on (counted from "
            f"0), in {', '.join(bad)}. Look for it in the data and the weights, with tools.examine, or mask "
            f"it."
        )
    estimates = {}
    for path, of_layer in stats.items():
        m = gathered(of_layer)
        if not np.any(m.count):
            raise ValueError(
                f"batches must have something that counts; got {len(finite)} in which nothing counts for "
                f"{path}. Check the mask."
            )
        estimates[path] = {
            name: jnp.where(m.count > 0, value, held[path][name]).astype(held[path][name].dtype)
            for name, value in (("mean", m.mean), ("var", m.var))
        }
    return estimates


def _is_finite(arrays: Mapping[str, jax.Array]) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values())
