"""Freezes batch norms, so that training no longer updates them."""

import dataclasses
from typing import Any

import flax.linen as nn
from flax import nnx

from ..core.calling._arguments import checked
from ..core.calling._explained import explained
from ._model._frozen import affine_is_frozen, frozen_class, unfrozen_class, without_gradients
from ._model._intercept import LayerCall
from ._model._model_of import check_model, model_of
from ._model._norms import against, is_norm, refused, running_norm, without_flag
from ._model._norms_call import call_norm
from ._model._rebuilt import called_class, in_place_of
from ._model._substitute import answering, without_answers
from ._model._types import Layer, ModelT, Variables
from ._model._where import Where, matches, select


@explained
@checked
def freeze(
    model: ModelT,
    where: Where | None = None,
    *,
    variables: Variables | None = None,
    affine: bool = False,
) -> ModelT:
    """Freezes the norms with running statistics of a model: they always evaluate, and update nothing.

    Use it for fine-tuning on batches that are too small or too different for statistics of their own. A
    frozen layer normalizes with its running statistics. These describe the data it was trained on, until
    `recalibrate` estimates them on the new data.

    All norms with running statistics can be frozen, Flax's ``BatchNorm`` and your own (`RunningNorm`)
    included. Scale and bias are still trained, unless ``affine`` is True: then they have no gradient. An
    optimizer may change them even without a gradient (weight decay, momentum from earlier steps): mask them
    with `norm_mask`, as shown below.

    Args:
        model: a Linen module or an NNX model; it is not modified.
        where: selects layers by path: a pattern such as ``"stem/*"``, or a function. None selects all.
        variables: the variables of the Linen module, which are used to find its layers.
        affine: whether to freeze scale and bias too.

    Returns:
        A Linen module that takes the same variables, or an NNX model with its own copies of the arrays.
        ``train()`` and ``use_running_average=False`` have no effect on frozen layers.

    Raises:
        ValueError: If ``where`` matches no norm with running statistics. If it matches a layer that holds
            some and does not say how it keeps them; for a Linen module, at the first call.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from jaxnorm import tools
        >>> model = nn.BatchNorm(use_running_average=False)
        >>> x = jnp.arange(6.0).reshape(3, 2)
        >>> variables = model.init(jax.random.key(0), x)
        >>> frozen = tools.freeze(model, variables=variables, affine=True)
        >>> y, updated = frozen.apply(variables, x, mutable=["batch_stats"])
        >>> print(updated["batch_stats"]["mean"], (y - x).max().round(3))
        [0. 0.] 0.0
        >>> optimizer = optax.chain(
        ...     optax.adamw(1e-3), optax.masked(optax.set_to_zero(), tools.norm_mask)
        ... )
    """
    select(where, model_of(model, variables).paths(), "norm with running statistics")
    if isinstance(model, nn.Module):
        return answering(model, _Frozen(where, affine))

    def frozen(path: tuple[Any, ...], node: Any) -> Any:
        kind: Any = type(node)
        if _should_freeze(node, "/".join(map(str, path)), where):
            node.__class__ = frozen_class(unfrozen_class(kind), affine or affine_is_frozen(kind))
        return node

    return nnx.recursive_map(frozen, nnx.clone(model))


def unfreeze(model: ModelT) -> ModelT:
    """Undoes `freeze`: returns the model with its original batch norms.

    Args:
        model: a model returned by `freeze`.

    Returns:
        A Linen module or an NNX model whose batch norms follow training and evaluation mode again.

    Raises:
        ValueError: If ``model`` is not a Flax model.

    Example:
        >>> from flax import nnx
        >>> from jaxnorm import tools
        >>> frozen = tools.freeze(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
        >>> print(type(frozen).__name__, type(tools.unfreeze(frozen)).__name__)
        FrozenBatchNorm BatchNorm
    """
    check_model(model)
    if isinstance(model, nn.Module):
        return without_answers(model, _Frozen)

    def thawed(path: tuple[Any, ...], node: Any) -> Any:
        kind: Any = type(node)
        if isinstance(node, nnx.Module):
            node.__class__ = unfrozen_class(kind)
        return node

    return nnx.recursive_map(thawed, nnx.clone(model))


def _should_freeze(layer: Layer, path: str, where: Where | None) -> bool:
    """Whether to freeze a layer.

    Raises:
        ValueError: If it holds running statistics, and how it evaluates is not known.
    """
    if not is_norm(layer) or not matches(where, path):
        return False
    reason = against(layer)
    if reason is not None:
        supported = "norms that say how they keep running statistics"
        raise ValueError(refused("freeze", supported, {path: reason}, {path: type(layer).__name__}))
    return running_norm(layer) is not None


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """An `Answer` that freezes norms of a Linen model."""

    where: Where | None
    affine: bool

    def __str__(self) -> str:
        return "norms are frozen" + ("" if self.where is None else f" where {self.where!r}")

    def watches(self, layer: Layer, path: str) -> bool:
        return is_norm(layer)

    def __call__(self, call: LayerCall) -> Any:
        if not _should_freeze(call.layer, call.path, self.where):
            return call.proceed(*call.args, **call.kwargs)
        layer = call.layer
        args, kwargs, _ = without_flag(layer, call.args, call.kwargs)
        kind = called_class(layer)
        if self.affine or affine_is_frozen(type(layer)):
            kind = without_gradients(kind)
        evaluating = in_place_of(layer, kind, use_running_average=True)
        return call_norm(evaluating, *args, **kwargs)
