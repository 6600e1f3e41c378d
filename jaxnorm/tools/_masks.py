"""Optimizer masks for the parameters of norms."""

from typing import Any

import jax

from ..core._explained import explained
from ._intercept import Where, matches, select
from ._replicas import key_names

_OTHERS = {"kernel", "embedding"}  # a bias next to one of these is not a norm's


@explained
def norm_mask(params: Any, where: Where | None = None) -> Any:
    """Returns True for the scale and bias of norms, and False for all other parameters.

    As an optax mask, ``optax.masked(optax.set_to_zero(), tools.norm_mask)`` at the end of a chain keeps these
    parameters unchanged, whatever comes before. In a separate partition, they also take no memory for
    momenta: ``optax.partition({True: optax.set_to_zero(), False: optimizer}, tools.norm_mask)``.

    Args:
        params: a tree of parameters: Linen's collection, or ``nnx.state(model, nnx.Param)``. Norms are
            recognized by name: a ``scale``, or a ``bias`` with no ``kernel`` or ``embedding`` next to it.
        where: selects layers by path: a pattern such as ``"stem/*"``, or a function. None selects all.

    Returns:
        A tree of booleans with the same structure.

    Raises:
        ValueError: If ``where`` matches no norm among the parameters.

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
    """Returns True for the parameters that weight decay should apply to: all except scales and biases.

    A norm after a layer undoes the scale of the layer's weights, so weight decay there acts on the learning
    rate. Decay of scale and bias pulls the output of the norm towards zero, which is not intended.

    Args:
        params: as for `norm_mask`.

    Returns:
        A tree of booleans with the same structure: ``optax.adamw(1e-3, mask=tools.decay_mask)``.

    Example:
        >>> from jaxnorm import tools
        >>> params = {"dense": {"kernel": 0, "bias": 0}, "norm": {"scale": 0, "bias": 0}}
        >>> print(tools.decay_mask(params))
        {'dense': {'bias': False, 'kernel': True}, 'norm': {'bias': False, 'scale': False}}
    """
    paths, structure = _paths(params)
    return jax.tree.unflatten(structure, [path[-1] not in ("scale", "bias") for path in paths])


def _paths(params: Any) -> tuple[list[tuple[str, ...]], Any]:
    """The path to each leaf; names of wrapped layers, such as Dense_0/kernel/scale, are split."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    return [tuple("/".join(key_names(path)).split("/")) for path, _ in leaves], structure
