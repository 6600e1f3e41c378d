"""Translates the options of PyTorch's norms."""

from typing import Any

import numpy as np


def torch_options(module: Any) -> dict[str, Any]:
    """Returns the options of the jaxnorm class that computes the same as a PyTorch norm.

        momentum = 1 - momentum    epsilon = eps    unbiased = True

    Args:
        module: a norm from `torch.nn`: BatchNorm1d to 3d, SyncBatchNorm, InstanceNorm1d to 3d, LayerNorm,
            RMSNorm, GroupNorm, LocalResponseNorm. `convert` converts its parameters and statistics. (For
            RMSNorm, ``eps=None`` is the machine epsilon of float64 if the weight is float64, else float32.)

    Returns:
        Keyword arguments for the corresponding class, in Linen and NNX. They leave out the channel axis,
        which is the last one here and the second in PyTorch (``axis=1``, ``feature_axes=1``), and NNX's
        ``num_features``.

    Raises:
        ValueError: If ``module`` is any other module.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxnorm import tools
        >>> class GroupNorm(SimpleNamespace):  # torch.nn.GroupNorm(4, 8)
        ...     pass
        >>> layer = GroupNorm(num_groups=4, eps=1e-5, weight=0, bias=0)
        >>> tools.torch_options(layer)
        {'num_groups': 4, 'epsilon': 1e-05, 'use_scale': True, 'use_bias': True}
    """
    names = [
        c.__name__.rstrip("123d") for c in type(module).__mro__
    ]  # so that subclasses are found too
    name = next((name for name in names if name in _OPTIONS), None)
    if name is None:
        raise ValueError(
            f"module must be one of {', '.join(_OPTIONS)} of torch.nn; got {type(module).__name__}. For a "
            f"larger model, pass each norm in model.modules()."
        )
    return _OPTIONS[name](module)


def _affine(module: Any) -> dict[str, Any]:
    return {"use_scale": module.weight is not None, "use_bias": module.bias is not None}


def _tracked(module: Any) -> dict[str, Any]:
    return {
        "momentum": None if module.momentum is None else 1 - module.momentum,
        "epsilon": module.eps,
        "unbiased": True,
        "track_running_stats": module.running_mean is not None,
        **_affine(module),
    }


def _instance(module: Any) -> dict[str, Any]:
    never = module.momentum is None  # batch norm would average; here the statistics never change
    return _tracked(module) | ({"momentum": 1.0} if never else {})


def _axes(module: Any) -> dict[str, Any]:
    axes = tuple(range(-len(module.normalized_shape), 0))
    return {} if len(axes) == 1 else {"reduction_axes": axes, "feature_axes": axes}


def _layer(module: Any) -> dict[str, Any]:
    return {"epsilon": module.eps, **_affine(module), **_axes(module)}


def _rms(module: Any) -> dict[str, Any]:
    # None is the machine epsilon of the dtype computed in, which is float32 for half precision too.
    dtype = str(getattr(module.weight, "dtype", "")).removeprefix("torch.")
    machine = float(np.finfo(np.float64 if dtype == "float64" else np.float32).eps)
    epsilon = machine if module.eps is None else module.eps
    return {"epsilon": epsilon, "use_scale": module.weight is not None, **_axes(module)}


def _group(module: Any) -> dict[str, Any]:
    return {"num_groups": module.num_groups, "epsilon": module.eps, **_affine(module)}


def _local_response(module: Any) -> dict[str, Any]:
    return {name: getattr(module, name) for name in ("size", "alpha", "beta", "k")}


_OPTIONS = {
    "BatchNorm": _tracked,
    "SyncBatchNorm": _tracked,
    "InstanceNorm": _instance,
    "LayerNorm": _layer,
    "RMSNorm": _rms,
    "GroupNorm": _group,
    "LocalResponseNorm": _local_response,
}
