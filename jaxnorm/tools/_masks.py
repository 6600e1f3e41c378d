"""Which parameters belong to norms, for optimizers."""

from typing import Any

import jax

from ..core._explained import explained
from ._intercept import Where, matches, select
from ._replicas import key_names

_OTHERS = {"kernel", "embedding"}  # what stands beside a bias that is not a norm's


@explained
def norm_mask(params: Any, where: Where | None = None) -> Any:
    """True for the scale and bias of norms, False for all other parameters.

    As a mask of optax, ``optax.masked(optax.set_to_zero(), tools.norm_mask)`` at the end of a chain keeps
    them as they are, whatever came before. In a partition of their own they take no memory for momenta
    either: ``optax.partition({True: optax.set_to_zero(), False: optimizer}, tools.norm_mask)``.

    Args:
        params: a tree of parameters: Linen's collection, or ``nnx.state(model, nnx.Param)``. Norms are known
            by names: a ``scale``, and a ``bias`` beside which is no ``kernel`` and no ``embedding``.
        where: which layers, by path: a pattern such as ``"stem/*"`` or a function. None means all.

    Returns:
        A tree of the same structure, of booleans.

    Raises:
        ValueError: ``where`` means no norm among the parameters.

    Example:
        >>> from jaxnorm import tools
        >>> params = {"dense": {"kernel": 0, "bias": 0}, "norm": {"scale": 0, "bias": 0}}
        >>> print(tools.norm_mask(params))
        {'dense': {'bias': False, 'kernel': False}, 'norm': {'bias': True, 'scale': True}}
    """
    paths, structure = _paths(params)
    layers_of_others = {path[:-1] for path in paths if path[-1] in _OTHERS}

    def norm_of(path: tuple[str, ...]) -> str | None:
        *layer, name = path
        is_affine = name == "scale" or (name == "bias" and path[:-1] not in layers_of_others)
        return "/".join(layer) if is_affine else None

    norms = [norm_of(path) for path in paths]
    if where is not None:
        select(where, list(dict.fromkeys(norm for norm in norms if norm is not None)), "norm")
    mask = [norm is not None and matches(where, norm) for norm in norms]
    return jax.tree.unflatten(structure, mask)


def decay_mask(params: Any) -> Any:
    """True for what weight decay is for: all parameters but the scale and bias of norms, and other biases.

    A norm after a layer undoes the scale of its weights, so that decay acts on the learning rate there;
    decay of scale and bias pulls what the norm gives towards zero, which nobody means.

    Args:
        params: as for `norm_mask`.

    Returns:
        A tree of the same structure, of booleans: ``optax.adamw(1e-3, mask=tools.decay_mask)``.

    Example:
        >>> from jaxnorm import tools
        >>> params = {"dense": {"kernel": 0, "bias": 0}, "norm": {"scale": 0, "bias": 0}}
        >>> print(tools.decay_mask(params))
        {'dense': {'bias': False, 'kernel': True}, 'norm': {'bias': False, 'scale': False}}
    """
    paths, structure = _paths(params)
    return jax.tree.unflatten(structure, [path[-1] not in ("scale", "bias") for path in paths])


def _paths(params: Any) -> tuple[list[tuple[str, ...]], Any]:
    """The names to each leaf; those of wrapped layers, such as Dense_0/kernel/scale, are taken apart."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    return [tuple("/".join(key_names(path)).split("/")) for path, _ in leaves], structure
