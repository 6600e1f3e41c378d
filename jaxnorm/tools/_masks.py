"""Optimizer masks for the parameters of norms."""

from typing import Any

import jax

from ..core.calling._explained import explained
from ._model._keys import key_names
from ._model._where import Where, matches, select

_OTHERS = {"kernel", "embedding"}  # next to one of these, only a scale is a norm's
_SCALES = {"scale", "log_scale", "query_scale", "key_scale", "gain"}
_BIASES = {"bias", "query_bias", "key_bias"}
_OF_NORMS = {*_SCALES, *_BIASES, "threshold", "alpha", "shift", "v", "mean_weights", "var_weights"}


@explained
def norm_mask(params: Any, where: Where | None = None) -> Any:
    """Returns True for the parameters of norms, such as scale and bias, and False for all others.

    As an optax mask, ``optax.masked(optax.set_to_zero(), tools.norm_mask)`` at the end of a chain keeps these
    parameters unchanged, whatever comes before. In a separate partition, they also take no memory for
    momenta: ``optax.partition({True: optax.set_to_zero(), False: optimizer}, tools.norm_mask)``.

    Args:
        params: a tree of parameters: Linen's collection, or ``nnx.state(model, nnx.Param)``. Norms are
            recognized by name: a ``scale``, or a ``bias`` or another parameter of jaxnorm's norms (``alpha``,
            ``shift``, ``threshold``, ``v`` ...) with no ``kernel`` or ``embedding`` next to it.
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
    of_norms = _are_of_norms(paths)
    norms = [
        "/".join(path[:-1]) if is_so else None for path, is_so in zip(paths, of_norms, strict=True)
    ]
    if where is not None:
        select(where, list(dict.fromkeys(norm for norm in norms if norm is not None)), "norm")
    mask = [norm is not None and matches(where, norm) for norm in norms]
    return jax.tree.unflatten(structure, mask)


def decay_mask(params: Any) -> Any:
    """Returns True for the parameters that weight decay should apply to: all but biases and those of norms.

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
    of_norms = _are_of_norms(paths)
    decays = [
        not is_so and not path[-1].endswith("bias")
        for path, is_so in zip(paths, of_norms, strict=True)
    ]
    return jax.tree.unflatten(structure, decays)


def _are_of_norms(paths: list[tuple[str, ...]]) -> list[bool]:
    """Whether each parameter is a norm's, by its name and the names next to it."""
    others = {path[:-1] for path in paths if path[-1] in _OTHERS}
    return [p[-1] in _SCALES or (p[-1] in _OF_NORMS and p[:-1] not in others) for p in paths]


def _paths(params: Any) -> tuple[list[tuple[str, ...]], Any]:
    """The path to each leaf; names of wrapped layers, such as Dense_0/kernel/scale, are split."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    return [tuple("/".join(key_names(path)).split("/")) for path, _ in leaves], structure
