"""Gradient accumulation over micro-batches, with one exact update of the running statistics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...core._precision import arithmetic_dtype
from ...core._running import RunningStats, update_running_stats
from ...core.calling._arguments import checked, is_integer
from ...core.calling._explained import explained
from ...norms._shared._running_norm import RunningNorm
from .._model._intercept import LayerCall
from .._model._interface import Stats
from .._model._model_of import model_of
from .._model._types import AnyModel, Batch, Rngs, Tree, Variables
from ._collect_moments import (
    add_batch,
    gathered,
    norms_of_batches,
    nothing_gathered,
    pooled,
)


class Accumulated(NamedTuple):
    """The result of `accumulate`.

    Example:
        >>> from jaxnorm import tools
        >>> a = tools.Accumulated(loss=jnp.array(2.0), grads={}, updated={"batch_stats": {}}, aux=None)
        >>> print(a.loss, *a.updated)
        2.0 batch_stats
    """

    loss: jax.Array  # the mean over the micro-batches
    grads: Tree  # gradients of that mean, with the structure of the parameters
    updated: Tree  # all but the parameters: {"batch_stats": ...} for Linen, a State for NNX
    aux: Tree  # the auxiliary output of the loss, stacked along a new first axis; or None


@explained
@checked
def accumulate(
    loss: Callable[[Any, Any], Any],
    model: AnyModel,
    batch: Batch,
    *,
    micro_batches: int,
    variables: Variables | None = None,
    has_aux: bool = False,
    rngs: Rngs | None = None,
) -> Accumulated:
    """Computes the loss and gradients of a large batch in ``micro_batches`` parts, to save memory.

    The running statistics are updated once, with the pooled moments of all parts:

        mean ← momentum · mean + (1 - momentum) · mean of the whole batch         (var likewise)

    The usual accumulation loop updates them once per part: with 8 parts, a momentum of 0.9 becomes 0.43,
    and the running variance misses the differences between the means of the parts.

    Each part is normalized with its own statistics, as on devices that do not share statistics: the
    gradients are those of batch norm with the smaller batch. All parts have the same weight in the loss
    and the gradients, which are summed in float32 or wider and rounded once to their own dtype.

    Works under jit, with or without a mesh. With k parts, part i holds the examples i, i + k, i + 2k, ...,
    so each part is sharded over the devices like the whole batch. In `pmap` and `shard_map`, layers with
    ``axis_name`` share statistics over the devices as usual; the gradients are those of each device.

    Args:
        loss: a function of a model and a micro-batch that returns a mean over its examples: ``lambda model,
            batch: cross_entropy(model(batch["image"], train=True), batch["label"]).mean()``. The model is
            bound to its variables, so call it like an NNX model.
        model: a Linen module or an NNX model; it is not modified.
        batch: a tree of arrays with examples along the first axis.
        micro_batches: number of parts; must divide the number of examples.
        variables: the variables of the Linen module.
        has_aux: whether ``loss`` returns a pair of the loss and an auxiliary output.
        rngs: random keys for a Linen module that draws random numbers, such as ``{"dropout": key}``; each
            part draws different numbers.

    Returns:
        Accumulated: for Linen, use ``state.apply_gradients(grads=a.grads, **a.updated)``; for NNX,
        ``optimizer.update(model, a.grads)`` and ``nnx.update(model, a.updated)``.

    Raises:
        ValueError: If ``micro_batches`` does not divide the number of examples, or the model calls no batch
            norm.

    Example:
        >>> import flax.linen as nn
        >>> from jaxnorm import tools
        >>> model = nn.BatchNorm(momentum=0.5, use_running_average=False)
        >>> x = jnp.array([[0.0], [2.0], [4.0], [6.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> loss = lambda model, x: (model(x) ** 2).mean()
        >>> a = tools.accumulate(loss, model, x, micro_batches=2, variables=variables)
        >>> print(a.updated["batch_stats"]["mean"], a.updated["batch_stats"]["var"])
        [1.5] [3.]
    """
    parts = _parts(batch, micro_batches)
    subject = model_of(model, variables, rngs)
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    norms = norms_of_batches(subject, loss, first, None, "accumulate", averaged=True)
    held = {path: subject.stats(path) for path in norms}
    nothing = {path: nothing_gathered(stats["mean"]) for path, stats in held.items()}
    params, rest = subject.split(subject.state)

    def loss_of_part(
        params: Tree, rest: Tree, gathered: Stats, part: Tree, number: jax.Array
    ) -> Any:
        # Every part starts from the running statistics before the first part.
        stats = {path: {**held[path], **gathered[path]} for path in held}
        state = subject.join(params, rest)
        result, stats, state = subject.run(state, stats, loss, part, _gather, subject.keys(number))
        value, aux = result if has_aux else (result, None)
        gathered = {path: {name: stats[path][name] for name in nothing[path]} for path in nothing}
        return value, (subject.split(state)[1], gathered, aux)

    step = jax.value_and_grad(loss_of_part, has_aux=True)

    def add(carry: Any, part_and_number: Any) -> Any:
        rest, stats, sums = carry
        (value, (rest, stats, aux)), grads = step(params, rest, stats, *part_and_number)
        return (rest, stats, jax.tree.map(_add, sums, (value, grads))), aux

    numbered = parts, jnp.arange(micro_batches)
    one = jax.tree.map(lambda leaf: leaf[0], numbered)
    (value, _), grads = jax.eval_shape(step, params, rest, nothing, *one)
    zeros = jax.tree.map(_zero, (value, grads))
    (rest, stats, sums), aux = lax.scan(add, (rest, nothing, zeros), numbered)
    means = jax.tree.map(lambda total: total / micro_batches, sums)
    value, grads = jax.tree.map(lambda a, like: a.astype(like.dtype), means, (value, grads))
    updated = {path: _updated(held[path], stats[path], norms[path].norm) for path in norms}
    state = subject.with_stats(subject.join(params, rest), updated)
    grads = subject.as_given({"params": grads})["params"]
    return Accumulated(value, grads, subject.as_given(subject.split(state)[1]), aux)


def _parts(batch: Batch, number: int) -> Any:
    """Splits every leaf along a new first axis: part i has the examples i, i + number, i + 2 number, ...

    Raises:
        ValueError: If the leaves differ in their number of examples, or ``number`` does not divide it.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    examples = sorted({leaf.shape[0] if leaf.ndim else 0 for leaf in leaves})
    is_count = is_integer(number) and number > 0
    if len(examples) != 1 or not is_count or examples[0] == 0 or examples[0] % number:
        raise ValueError(
            f"micro_batches must divide the number of examples, which is the size of axis 0 of every leaf of "
            f"batch; got micro_batches={number} and {examples or 'no'} examples. Drop examples, or pad the "
            f"batch and mask the padding."
        )

    def part(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return leaf.reshape(-1, number, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(part, batch)


def _zero(like: jax.ShapeDtypeStruct) -> jax.Array:
    """A sum of nothing. In bfloat16, a sum of more than 256 ones would not grow; float16 would overflow."""
    return jnp.zeros(like.shape, arithmetic_dtype(like.dtype))


def _add(total: jax.Array, part: jax.Array) -> jax.Array:
    return total + part.astype(total.dtype)


def _gather(call: LayerCall) -> Any:
    """Adds the moments of the part to those gathered, if the layer normalizes with batch statistics."""
    if call.norm is not None and not call.is_frozen:  # others may have no use_running_average
        evaluating = call.layer.use_running_average if call.flag is None else call.flag
        if not evaluating:
            add_batch(call, pooled)
    return call.proceed(*call.args, **call.kwargs)


def _updated(
    held: Mapping[str, jax.Array], stats: Mapping[str, jax.Array], norm: RunningNorm
) -> dict[str, jax.Array]:
    """The running statistics of a layer after the whole batch."""
    updated = update_running_stats(
        RunningStats(**held),
        lax.stop_gradient(gathered(stats)),
        momentum=norm.momentum,
        unbiased=norm.unbiased,
    )
    return {name: value for name, value in updated._asdict().items() if value is not None}
