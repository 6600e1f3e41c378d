"""Replaces every batch norm of a model with another norm."""

import dataclasses
from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import linen as jnl, nnx as jnx
from ..core.calling._explained import explained
from ..norms._registry import NormName
from ..norms._shared._flags import taken_by
from ._carried import carried_variables
from ._model._frozen import affine_is_frozen, keep_frozen, unfrozen_class, without_gradients
from ._model._intercept import BATCH_NORMS, LayerCall
from ._model._model_of import model_of
from ._model._norms import against, holds_running_stats, refused, without_flag
from ._model._norms_call import overriding, speaks_for_itself
from ._model._rebuilt import in_place_of, place_of
from ._model._substitute import answering
from ._model._types import AnyModel, Layer, NnxModelT, Variables
from ._model._where import Where, matches, select
from ._replacement import VARIABLES, Constructor, Replacement

# What to do if the other norm does not take an argument of the batch norm.
_INSTEAD = {"residual": "Add it after the norm in the model", "mask": "Use a norm that takes it"}


@overload
def swap(
    model: nn.Module,
    norm: NormName | str | Constructor,
    *,
    variables: Variables | None = None,
    where: Where | None = None,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]: ...
@overload
def swap(
    model: NnxModelT,
    norm: NormName | str | Constructor,
    *,
    variables: None = None,
    where: Where | None = None,
    **options: Any,
) -> NnxModelT: ...
@explained
def swap(
    model: AnyModel,
    norm: NormName | str | Constructor,
    *,
    variables: Variables | None = None,
    where: Where | None = None,
    **options: Any,
) -> Any:
    """Replaces the batch norms of a model with another norm. Your model code does not change.

    Use it if batches are too small for batch norm, for differential privacy, which must not mix examples, or
    for comparisons: for example, to use group norm in a network that somebody else wrote. ``norm="batch"``
    replaces Flax's batch norm with jaxnorm's.

    Scale and bias carry over, as do epsilon, activation and dtypes, unless ``options`` override them. Running
    statistics carry over only to a batch norm, frozen or not. Whatever else the norm has is initialized.
    Other norms compute a different function, so a trained model needs some more training.

    Args:
        model: a Linen module or an NNX model; it is not modified.
        norm: a name, as in `jaxnorm.linen.get_norm`, or a constructor of the same module system.
        variables: the variables of the Linen module, ``params`` and ``batch_stats``, which are used to find
            its batch norms.
        where: selects layers by path: a pattern such as ``"stem/*"``, or a function. None selects all.
        options: arguments of the norm, such as ``num_groups=8``.

    Returns:
        A Linen module and its variables, or an NNX model with its own copies of the arrays.

    Raises:
        ValueError: If ``where`` matches no batch norm, there is no such norm, or it does not support what
            the batch norm does: a feature axis other than the last, an activation, a residual or a mask. If
            ``where`` matches another norm with running statistics; for a Linen module, at the first call.
            If it matches an NNX layer that overrides ``__call__``.
        TypeError: If the norm has no such option.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=False), nn.relu])
        >>> x = jax.random.normal(jax.random.key(0), (2, 4))
        >>> variables = model.init(jax.random.key(1), x)
        >>> swapped, variables = tools.swap(model, "group", variables=variables, num_groups=4)
        >>> print(jax.tree.map(jnp.shape, variables["params"]["layers_1"]), "batch_stats" in variables)
        {'bias': (8,), 'scale': (8,)} False
        >>> print(swapped.apply(variables, x).shape)
        (2, 8)
    """
    subject = model_of(model, variables)
    paths = select(where, subject.paths(), "batch norm")
    if isinstance(model, nn.Module):
        linen_norm = Replacement.of(jnl.get_norm, norm, options, nn.Module)
        swapped = answering(model, _Swapped(linen_norm, where, tuple(paths)))
        return swapped, subject.as_given(carried_variables(subject.state, paths, linen_norm))
    nnx_norm = Replacement.of(jnx.get_norm, norm, options, nnx.Module)

    def replaced(path: tuple[Any, ...], node: Any) -> Any:
        name = "/".join(map(str, path))
        if not _should_replace(node, name, where, keeps=holds_running_stats(node)):
            return node
        _check_call(node, name)
        new = nnx_norm.like(node, name, node.num_features, rngs=nnx.Rngs(0))
        _stack(new, like=node)
        for variable in VARIABLES:
            fresh, held = getattr(new, variable, None), getattr(node, variable, None)
            if fresh is not None and held is not None and nnx_norm.takes_over(variable):
                held.set_value(nnx_norm.cast(variable, held[...]))
                kind = type(fresh)  # a frozen batch norm holds its scale as a statistic
                setattr(new, variable, held if isinstance(held, kind) else kind(held[...]))
        if nnx_norm.is_batch_norm:
            keep_frozen(new, node)
        return new

    return nnx.recursive_map(replaced, nnx.clone(model))


def _stack(new: nnx.Module, like: Any) -> None:
    """Repeats the variables of ``new`` along the leading axes of a layer that `flax.nnx.vmap` made."""
    shape = () if like.mean is None else like.mean.shape
    stacked = shape[: len(shape) - np.size(like.num_features)]
    state = nnx.state(new, nnx.Variable)
    nnx.update(new, jax.tree.map(lambda a: jnp.broadcast_to(a, (*stacked, *a.shape)), state))


def _should_replace(layer: Layer, path: str, where: Where | None, *, keeps: bool) -> bool:
    """Whether to replace a layer.

    Raises:
        ValueError: If it ``keeps`` running statistics and is not a batch norm, or does not call one, or
            speaks for itself.
    """
    if not matches(where, path):
        return False
    reason = None
    if isinstance(layer, BATCH_NORMS):
        reason = against(layer)
        if reason is None and speaks_for_itself(type(layer)):
            reason = "it has a method running_norm of its own"
    elif keeps:
        reason = "it keeps running statistics and computes something else"
    if reason is not None:
        supported = "batch norms, Flax's and jaxnorm's"
        raise ValueError(refused("swap", supported, {path: reason}, {path: type(layer).__name__}))
    return isinstance(layer, BATCH_NORMS)


def _check_call(layer: Layer, path: str) -> None:
    """Validates that replacing an NNX layer replaces nothing but its batch norm.

    Raises:
        ValueError: If its class overrides ``__call__``.
    """
    kind = unfrozen_class(type(layer))
    if overriding(kind):
        reason = "it overrides __call__, and what that adds would be lost"
        supported = "NNX layers that compute a batch norm and nothing else"
        raise ValueError(refused("swap", supported, {path: reason}, {path: kind.__name__}))


@dataclasses.dataclass(frozen=True)
class _Swapped:
    """An `Answer` that calls another norm instead of the batch norms of a Linen model."""

    norm: Replacement
    where: Where | None
    paths: tuple[str, ...]  # of the layers whose variables are replaced

    def __str__(self) -> str:
        return f"{self.norm.constructor.__name__} at {', '.join(map(repr, self.paths))}"

    def watches(self, layer: Layer, path: str) -> bool:
        return isinstance(layer, BATCH_NORMS) or path in self.paths

    def __call__(self, call: LayerCall) -> Any:
        if not _should_replace(call.layer, call.path, self.where, keeps=call.path in self.paths):
            return call.proceed(*call.args, **call.kwargs)
        args, given, flag = without_flag(call.layer, call.args, call.kwargs)
        if flag is not None:
            given["use_running_average"] = flag
        if call.layer.use_running_average is not None and not self.norm.knows(
            "use_running_average"
        ):
            given["use_running_average"] = call.layer.use_running_average
        norm: Any = self.norm.like(call.layer, call.path, parent=place_of(call.layer))
        if self.norm.is_batch_norm and affine_is_frozen(type(call.layer)):
            norm = in_place_of(norm, without_gradients(type(norm)))
        takes = taken_by(norm)
        for name, advice in _INSTEAD.items():
            if given.get(name) is not None and name not in takes:
                raise ValueError(
                    f"the replacement for a batch norm must take all its arguments; got a {name} at "
                    f"{call.path!r}, which {type(norm).__name__} does not take. {advice}, or exclude this "
                    f"layer with where."
                )
        return norm(*args, **{name: value for name, value in given.items() if name in takes})
