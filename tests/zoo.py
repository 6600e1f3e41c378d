"""The norms that Flax does not have, each with its formula from the paper in float64."""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxnorm as jn
from tests import reference

SHAPE = (3, 2, 3, 4)
POSITIONS = (1, 2)
EPSILON = 1e-3  # large enough to matter


class Zoo(NamedTuple):
    """A norm: ours and the oracle take x and the parameters, and a mask by keyword if they support one."""

    ours: Callable[..., Any]
    oracle: Callable[..., Any]
    parameters: tuple[tuple[int, ...], ...] = ()
    takes_mask: bool = True
    shape: tuple[int, ...] = SHAPE


def _mean(values: Any, axes: Any, mask: Any) -> Any:
    """The mean of unmasked elements."""
    counted = np.broadcast_to(True if mask is None else mask, values.shape)
    total = np.where(counted, values, 0).sum(axes, keepdims=True)
    return total / np.maximum(counted.sum(axes, keepdims=True), 1)


def _var(x: Any, axes: Any, mask: Any) -> Any:
    return _mean((x - _mean(x, axes, mask)) ** 2, axes, mask)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


_erf = np.vectorize(math.erf)


def _frn(x: Any, scale: Any, bias: Any, tau: Any, mask: Any = None) -> Any:
    y = x / np.sqrt(_mean(x**2, POSITIONS, mask) + EPSILON)
    return np.maximum(y * scale + bias, tau)


def _evo_s0(x: Any, v: Any, scale: Any, bias: Any, mask: Any = None) -> Any:
    groups = x.reshape(*x.shape[:-1], 2, -1)
    counted = None if mask is None else np.broadcast_to(mask, x.shape).reshape(groups.shape)
    var = np.repeat(_var(groups, (1, 2, 4), counted)[..., 0], x.shape[-1] // 2, -1)
    return x * _sigmoid(v * x) / np.sqrt(var + EPSILON) * scale + bias


def _evo_b0(x: Any, v: Any, scale: Any, bias: Any, mask: Any = None) -> Any:
    batch, instance = _var(x, (0, 1, 2), mask), _var(x, POSITIONS, mask)
    line = v * x + np.sqrt(instance + EPSILON)
    return x / np.maximum(np.sqrt(batch + EPSILON), line) * scale + bias


def _grn(x: Any, scale: Any, bias: Any, mask: Any = None) -> Any:
    counted = np.broadcast_to(True if mask is None else mask, x.shape)
    length = np.sqrt(np.where(counted, x**2, 0).sum(POSITIONS, keepdims=True))
    return x + x * (length / (length.mean(-1, keepdims=True) + EPSILON)) * scale + bias


def _adain(x: Any, style: Any, mask: Any = None) -> Any:
    y = (x - _mean(x, POSITIONS, mask)) / np.sqrt(_var(x, POSITIONS, mask) + EPSILON)
    return y * np.sqrt(_var(style, POSITIONS, None) + EPSILON) + _mean(style, POSITIONS, None)


def _ada_layer_norm(x: Any, scale: Any, shift: Any, mask: Any = None) -> Any:
    y = (x - _mean(x, -1, mask)) / np.sqrt(_var(x, -1, mask) + EPSILON)
    return y * (1 + scale[:, None, None]) + shift[:, None, None]


def _ada_rms_norm(x: Any, scale: Any, shift: Any, mask: Any = None) -> Any:
    y = x / np.sqrt(_mean(x**2, -1, mask) + EPSILON)
    return y * (1 + scale[:, None, None]) + shift[:, None, None]


def _ada_group_norm(x: Any, scale: Any, shift: Any, mask: Any = None) -> Any:
    split = x.reshape(*x.shape[:-1], 2, -1)
    if mask is not None:
        mask = np.broadcast_to(mask, x.shape).reshape(split.shape)
    mean, var = _mean(split, (1, 2, 4), mask), _var(split, (1, 2, 4), mask)
    y = ((split - mean) / np.sqrt(var + EPSILON)).reshape(x.shape)
    return y * (1 + scale[:, None, None]) + shift[:, None, None]


def _switchable(
    x: Any, mean_weights: Any, var_weights: Any, scale: Any, bias: Any, mask: Any = None
) -> Any:
    kinds = (POSITIONS, (1, 2, 3), (0, 1, 2))
    shares = [np.exp(w) / np.exp(w).sum() for w in (mean_weights, var_weights)]
    mean = sum(share * _mean(x, axes, mask) for share, axes in zip(shares[0], kinds, strict=True))
    var = sum(share * _var(x, axes, mask) for share, axes in zip(shares[1], kinds, strict=True))
    return (x - mean) / np.sqrt(var + EPSILON) * scale + bias


def _whitened(x: Any, scale: Any, bias: Any, mask: Any = None, steps: int = 5) -> Any:
    axes = (0, 1, 2)
    mean = _mean(x, axes, mask)
    counted = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    rows = np.where(counted, x - mean, 0).reshape(-1, x.shape[-1])
    n = counted[..., 0].sum()
    covariance = rows.T @ rows / n + EPSILON * np.eye(x.shape[-1])
    unit, p = covariance / np.trace(covariance), np.eye(x.shape[-1])
    for _ in range(steps):
        p = 1.5 * p - 0.5 * p @ p @ p @ unit
    return (x - mean) @ (p / np.sqrt(np.trace(covariance))) * scale + bias


def _partial_rms(x: Any, scale: Any, mask: Any = None) -> Any:
    part = None if mask is None else np.broadcast_to(mask, x.shape)[..., :2]
    return x / np.sqrt(_mean(x[..., :2] ** 2, -1, part) + EPSILON) * scale


def _mean_only(x: Any, bias: Any, mask: Any = None) -> Any:
    return x - _mean(x, (0, 1, 2), mask) + bias


OLD: Any = jn.RunningStats([0.3, -0.2, 1.0, 0.1], [0.5, 2.0, 30.0, 0.9])  # pyright: ignore[reportArgumentType]
"""Running statistics, some near the batch's and some far from them."""


def _renormalized(x: Any, scale: Any, bias: Any, mask: Any = None) -> Any:
    mean, std = _mean(x, (0, 1, 2), mask), np.sqrt(_var(x, (0, 1, 2), mask) + EPSILON)
    r, d = _correction(mask)
    return ((x - mean) / std * r + d) * scale + bias


def _correction(mask: Any, rmax: float = 1.5, dmax: float = 0.5) -> tuple[Any, Any]:
    """The r and d of batch renorm at the tested point; constants, as in the paper."""
    x = np.asarray(primals("batch_renorm")[0], float)
    old_mean, old_var = map(np.array, OLD[:2])
    old = np.sqrt(old_var + EPSILON)
    mean, std = _mean(x, (0, 1, 2), mask), np.sqrt(_var(x, (0, 1, 2), mask) + EPSILON)
    r = np.clip(std / old, 1 / rmax, rmax)
    return r, np.clip((mean - old_mean) / old, -dmax, dmax)


def _input_norm(x: Any, mask: Any = None) -> Any:
    """The statistics are constants."""
    at = np.asarray(primals("input_norm")[0], float)
    return (x - _mean(at, (0, 1, 2), mask)) / np.sqrt(_var(at, (0, 1, 2), mask) + EPSILON)


def _lp(p: float) -> Callable[..., Any]:
    return lambda x: x / (np.abs(x) ** p).sum(-1, keepdims=True) ** (1 / p)


def _stats() -> jn.RunningStats:
    return jn.RunningStats(*(jnp.asarray(a, jnp.float32) for a in OLD[:2]))


def _of(name: str, **options: Any) -> Callable[..., Any]:
    """The function in tests.reference, of x, the parameters, and running statistics if it takes these."""
    stats = (np.zeros(4), np.ones(4), None)
    given = (stats,) if "momentum" in signature(getattr(reference, name)).parameters else ()
    return lambda x, *args, **mask: getattr(reference, name)(x, *given, *args, **options, **mask)[0]


def _with(name: str, *parameters: tuple[int, ...], **options: Any) -> Zoo:
    """A function with options that the reference has too."""
    options |= {"epsilon": EPSILON}
    return Zoo(
        lambda *args, **mask: getattr(jn, name)(*args, **options, **mask),
        lambda *args, **mask: getattr(reference, name)(*args, **options, **mask)[0],
        parameters,
    )


def _both(y: Any, total: Any) -> Any:
    """A function of the norm and the sum."""
    return y + 0.5 * total


_C = (4,)
ZOO: dict[str, Zoo] = {
    "act_norm": Zoo(
        lambda *args, **mask: jn.act_norm(*args, **mask)[0],
        lambda x, log_scale, bias, mask=None: (x + bias) * np.exp(log_scale),
        (_C, _C),
    ),
    "ada_layer_norm": Zoo(
        lambda *args, **mask: jn.ada_layer_norm(*args, epsilon=EPSILON, **mask),
        _ada_layer_norm,
        ((3, 4), (3, 4)),
    ),
    "ada_rms_norm": Zoo(
        lambda *args, **mask: jn.ada_rms_norm(*args, epsilon=EPSILON, **mask),
        _ada_rms_norm,
        ((3, 4), (3, 4)),
    ),
    "ada_group_norm": Zoo(
        lambda *args, **mask: jn.ada_group_norm(*args, num_groups=2, epsilon=EPSILON, **mask),
        _ada_group_norm,
        ((3, 4), (3, 4)),
    ),
    "adain": Zoo(
        lambda *args, **mask: jn.adain(*args, epsilon=EPSILON, **mask), _adain, ((3, 5, 2, 4),)
    ),
    "add_layer_norm": Zoo(
        lambda *args, **mask: jn.add_layer_norm(*args, epsilon=EPSILON, **mask)[0],
        lambda *args, **mask: reference.add_layer_norm(*args, epsilon=EPSILON, **mask)[0],
        (SHAPE, _C, _C),
    ),
    "add_rms_norm": Zoo(
        lambda *args, **mask: _both(*jn.add_rms_norm(*args, epsilon=EPSILON, **mask)),
        lambda *args, **mask: _both(*reference.add_rms_norm(*args, epsilon=EPSILON, **mask)),
        (SHAPE, _C),
    ),
    "batch_renorm": Zoo(
        lambda x, *affine, **mask: jn.batch_renorm(
            x, _stats(), *affine, rmax=1.5, dmax=0.5, epsilon=EPSILON, **mask
        )[0],
        _renormalized,
        (_C, _C),
    ),
    "derf": Zoo(
        jn.derf,
        lambda x, alpha, shift, scale, bias, mask=None: _erf(alpha * x + shift) * scale + bias,
        ((), (), _C, _C),
    ),
    "dynamic_tanh": Zoo(
        jn.dynamic_tanh,
        lambda x, alpha, scale, bias, mask=None: np.tanh(alpha * x) * scale + bias,
        ((), _C, _C),
    ),
    "evo_norm_b0": Zoo(
        lambda x, *more, **mask: jn.evo_norm_b0(x, _stats(), *more, epsilon=EPSILON, **mask)[0],
        _evo_b0,
        (_C, _C, _C),
    ),
    "evo_norm_s0": Zoo(
        lambda *args, **mask: jn.evo_norm_s0(*args, num_groups=2, epsilon=EPSILON, **mask),
        _evo_s0,
        (_C, _C, _C),
    ),
    "evo_norm_b1": Zoo(
        lambda x, *more, **mask: jn.evo_norm_b1(x, _stats(), *more, epsilon=EPSILON, **mask)[0],
        _of("evo_norm_b1", epsilon=EPSILON),
        (_C, _C),
    ),
    "evo_norm_b2": Zoo(
        lambda x, *more, **mask: jn.evo_norm_b2(x, _stats(), *more, epsilon=EPSILON, **mask)[0],
        _of("evo_norm_b2", epsilon=EPSILON),
        (_C, _C),
    ),
    "evo_norm_s1": Zoo(
        lambda *args, **mask: jn.evo_norm_s1(*args, num_groups=2, epsilon=EPSILON, **mask),
        _of("evo_norm_s1", num_groups=2, epsilon=EPSILON),
        (_C, _C),
    ),
    "evo_norm_s2": Zoo(
        lambda *args, **mask: jn.evo_norm_s2(*args, num_groups=2, epsilon=EPSILON, **mask),
        _of("evo_norm_s2", num_groups=2, epsilon=EPSILON),
        (_C, _C),
    ),
    "filter_response_norm": Zoo(
        lambda *args, **mask: jn.filter_response_norm(*args, epsilon=EPSILON, **mask),
        _frn,
        (_C, _C, _C),
    ),
    "gated_rms_norm": Zoo(jn.gated_rms_norm, _of("gated_rms_norm"), ((3, 1, 1, 4), _C)),
    "global_response_norm": Zoo(
        lambda *args, **mask: jn.global_response_norm(*args, epsilon=EPSILON, **mask),
        _grn,
        (_C, _C),
    ),
    "input_norm": Zoo(
        lambda x, **mask: jn.input_norm(x, jn.init_input_norm(4), epsilon=EPSILON, **mask)[0],
        _input_norm,
    ),
    "group_norm, silu": _with("group_norm", _C, _C, num_groups=2, activation="silu"),
    "instance_norm, relu": _with("instance_norm", _C, _C, activation="relu"),
    "iterative_whitening": Zoo(
        lambda x, *affine, **mask: jn.iterative_whitening(
            x, jn.init_whitening(4), *affine, epsilon=EPSILON, **mask
        )[0],
        _whitened,
        (_C, _C),
    ),
    "layer_norm, gelu": _with("layer_norm", _C, _C, activation="gelu"),
    "layer_scale": Zoo(jn.layer_scale, _of("layer_scale"), (_C,)),
    "lp_normalize 1": Zoo(lambda x: jn.lp_normalize(x, p=1), _lp(1), (), False),
    "lp_normalize 3": Zoo(lambda x: jn.lp_normalize(x, p=3), _lp(3), (), False),
    "lp_normalize inf": Zoo(
        lambda x: jn.lp_normalize(x, p=math.inf),
        lambda x: x / np.abs(x).max(-1, keepdims=True),
        (),
        False,
    ),
    "mean_only_batch_norm": Zoo(
        lambda x, bias, **mask: jn.mean_only_batch_norm(x, _stats(), bias, **mask)[0],
        _mean_only,
        (_C,),
    ),
    "modulate": Zoo(
        lambda *args: jn.modulate(*args, scale_offset=1.0),
        lambda x, scale, bias: x * (1 + scale[:, None, None]) + bias,
        ((3, 4), (3, 1, 3, 1)),
        False,
    ),
    "sim_norm": Zoo(
        lambda x, **mask: jn.sim_norm(x, simplex_size=2, **mask), _of("sim_norm", simplex_size=2)
    ),
    "pixel_norm": Zoo(
        lambda x, **mask: jn.pixel_norm(x, epsilon=EPSILON, **mask),
        lambda x, mask=None: x / np.sqrt(_mean(x**2, -1, mask) + EPSILON),
    ),
    "qk_norm, query": Zoo(
        lambda *args: jn.qk_norm(*args, epsilon=EPSILON)[0],
        lambda x, key, a, b: x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * a,
        ((2, 4), _C, _C),
        False,
    ),
    "qk_norm, key": Zoo(
        lambda *args: jn.qk_norm(*args, epsilon=EPSILON)[1],
        lambda x, key, a, b: key / np.sqrt((key**2).mean(-1, keepdims=True) + EPSILON) * b,
        ((2, 4), _C, _C),
        False,
    ),
    "qk_norm, layer": Zoo(
        lambda *args: jn.qk_norm(*args, kind="layer", epsilon=EPSILON)[0],
        lambda x, key, a, b, c, d: (
            (x - _mean(x, -1, None)) / np.sqrt(_var(x, -1, None) + EPSILON) * a + c
        ),
        ((2, 4), _C, _C, _C, _C),
        False,
    ),
    "qk_norm, all heads": Zoo(
        lambda *args: jn.qk_norm(*args, reduction_axes=(-2, -1), epsilon=EPSILON)[0],
        lambda x, key, a, b: x / np.sqrt(_mean(x**2, (-2, -1), None) + EPSILON) * a,
        ((2, 4), _C, _C),
        False,
    ),
    "qk_norm, temperature": Zoo(
        lambda *args: jn.qk_norm(*args, kind="l2", feature_axes=(), epsilon=EPSILON)[0],
        lambda x, key, a: x / np.sqrt((x**2).sum(-1, keepdims=True) + EPSILON) * a,
        ((2, 4), ()),
        False,
    ),
    "rms_norm, partial": Zoo(
        lambda *args, **mask: jn.rms_norm(*args, fraction=0.5, epsilon=EPSILON, **mask),
        _partial_rms,
        (_C,),
    ),
    "rms_norm, leaky_relu": _with("rms_norm", _C, activation="leaky_relu"),
    "scale_norm": Zoo(
        lambda x, g, **mask: jn.scale_norm(x, g, epsilon=EPSILON, **mask),
        lambda x, g, mask=None: (
            x / np.sqrt(_mean(x**2, -1, mask) * _counted(x, mask) + EPSILON) * g
        ),
        ((),),
    ),
    "switchable_norm": Zoo(
        lambda x, *more, **mask: jn.switchable_norm(x, _stats(), *more, epsilon=EPSILON, **mask)[0],
        _switchable,
        ((3,), (3,), _C, _C),
    ),
}


def _counted(x: Any, mask: Any) -> Any:
    counted = np.broadcast_to(True if mask is None else mask, x.shape)
    return counted.sum(-1, keepdims=True)


def primals(name: str, dtype: Any = np.float32) -> tuple[Any, ...]:
    """Returns x and the parameters."""
    zoo, rng = ZOO[name], np.random.default_rng(sum(map(ord, name)))
    x = 0.5 + 1.5 * rng.normal(size=zoo.shape)
    return tuple(
        np.asarray(a, dtype) for a in (x, *(0.3 + rng.normal(size=s) for s in zoo.parameters))
    )


def mask_of(name: str) -> np.ndarray:
    """A mask that keeps some elements everywhere, the same for all channels if the norm requires it."""
    mask = np.random.default_rng(3).random(ZOO[name].shape) < 0.7
    if name == "iterative_whitening":
        mask = mask[..., :1]
    mask[:, 0, :2] = True
    mask[0, 1, 1] = False
    return mask
