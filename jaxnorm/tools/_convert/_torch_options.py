"""Translates the options of PyTorch's norms."""

from typing import Any

import numpy as np


def torch_options(module: Any) -> dict[str, Any]:
    """Returns the options of the jaxnorm class that computes the same as a PyTorch norm.

        momentum = 1 - momentum    epsilon = eps    unbiased = True

    Args:
        module: a norm from `torch.nn`: BatchNorm1d to 3d, SyncBatchNorm, InstanceNorm1d to 3d, LayerNorm,
            RMSNorm, GroupNorm, LocalResponseNorm, or timm's subclasses of these, such as GroupNormAct.
            `convert` converts its parameters and statistics. (For RMSNorm, ``eps=None`` is the machine
            epsilon of float64 if the weight is float64, else float32.)

    Returns:
        Keyword arguments for the corresponding class, in Linen and NNX. They leave out the channel axis,
        which is the last one here and the second in PyTorch (``axis=1``, ``feature_axes=1``), and NNX's
        ``num_features``.

    Raises:
        ValueError: If ``module`` is any other module, such as a subclass with its own ``forward``, or if it
            applies an activation or dropout that the jaxnorm class does not have.

    Example:
        >>> from types import SimpleNamespace
        >>> from jaxnorm import tools
        >>> class GroupNorm(SimpleNamespace):  # torch.nn.GroupNorm(4, 8)
        ...     pass
        >>> layer = GroupNorm(num_groups=4, eps=1e-5, weight=0, bias=0)
        >>> tools.torch_options(layer)
        {'num_groups': 4, 'epsilon': 1e-05, 'use_scale': True, 'use_bias': True}
    """
    bases = {kind.__name__.rstrip("123d"): kind for kind in reversed(type(module).__mro__)}
    name = next((name for name in reversed(bases) if name in _OPTIONS), None)
    if name is None or not _is_known(type(module), bases[name]):
        raise ValueError(
            f"module must be one of {', '.join(_OPTIONS)} of torch.nn, or compute the same; got "
            f"{type(module).__name__}. For a larger model, pass each norm in model.modules()."
        )
    options = _OPTIONS[name](module)
    activation = _activation(module)
    if activation is None:
        return options
    if name == "LocalResponseNorm" or activation not in _ACTIVATIONS:
        raise ValueError(
            f"the jaxnorm class must compute all that module computes; got {type(module).__name__} with "
            f"{activation}, which it does not apply. Apply it after the norm in the model, and pass a plain "
            f"{name} of the same options here."
        )
    return {**options, "activation": _ACTIVATIONS[activation]}


_ACTIVATIONS = {
    "ReLU": "relu",
    "SiLU": "silu",
    "Swish": "silu",
    "LeakyReLU": "leaky_relu",
    "GELU(approximate='tanh')": "gelu",
    "GELUTanh": "gelu",
}


def _is_known(kind: type, base: type) -> bool:
    """Whether a class computes what its ``base`` in torch.nn computes, apart from an activation."""
    if getattr(kind, "forward", None) is getattr(base, "forward", None):
        return True
    # timm's classes choose faster implementations, or apply an activation; this one splits the batch.
    return kind.__module__.startswith("timm.") and not kind.__name__.startswith("Split")


def _activation(module: Any) -> str | None:
    """What timm's norms apply in the end; None if nothing."""
    if getattr(getattr(module, "drop", None), "p", 0):
        return f"dropout of {module.drop.p}"
    act = getattr(module, "act", None)
    name = type(act).__name__
    if act is None or name == "Identity":
        return None
    if getattr(act, "approximate", "none") != "none":
        return f"{name}(approximate={act.approximate!r})"
    slope = getattr(act, "negative_slope", 0.01)
    return name if slope == 0.01 else f"{name}(negative_slope={slope})"


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
