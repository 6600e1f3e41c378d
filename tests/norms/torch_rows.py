"""The counterparts of PyTorch's norms, argument by argument, as in docs/coming-from-pytorch.md.

Every test against PyTorch reads this table. ``becomes`` translates each argument of PyTorch to fields of
our modules; arguments that a row leaves out have PyTorch's defaults and are translated as well.
"""

import dataclasses
import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to call a constructor, and the shape of its test input."""

    name: str
    theirs: str  # a name in torch
    options: Fields
    shape: tuple[int, ...]

    def arguments(self, torch: Any) -> Fields:
        """The constructor's arguments, defaults included."""
        signature = inspect.signature(attrgetter(self.theirs)(torch))
        bound = signature.bind_partial(**self.options)
        bound.apply_defaults()
        return dict(bound.arguments)


@dataclasses.dataclass(frozen=True)
class Peer:
    """PyTorch constructors with the same counterpart here."""

    theirs: tuple[str, ...]
    ours: str  # in jaxnorm.linen and jaxnorm.nnx
    becomes: dict[str, Callable[[Any], Fields]]
    always: Fields  # fields that no argument of PyTorch sets
    rows: tuple[Row, ...]

    def fields(self, arguments: Fields) -> Fields:
        """Translates all of PyTorch's ``arguments``, defaults included, to ours."""
        found = dict(self.always)
        for name, value in arguments.items():
            if name not in PLACEMENT:
                found |= self.becomes[name](value)
        return found


PLACEMENT = ("device", "dtype", "process_group", "out")  # these set placement, not values


def nothing(_: Any) -> Fields:
    """For an argument that needs no counterpart."""
    return {}


def renamed(name: str) -> Callable[[Any], Fields]:
    """Renames an argument and keeps its value."""
    return lambda value: {name: value}


def kept(momentum: float | None) -> Fields:
    """PyTorch's momentum is the weight of the new value, ours that of the old one."""
    return {"momentum": None if momentum is None else 1 - momentum}


def kept_by_instance_norm(momentum: float | None) -> Fields:
    """None means that the running statistics never change."""
    return {"momentum": 1.0 if momentum is None else 1 - momentum}


def affine(wanted: bool) -> Fields:
    """Translates one flag to our two."""
    return {} if wanted else {"use_scale": False, "use_bias": False}


def has_bias(wanted: bool) -> Fields:
    """Turns off the bias; without a scale there is none anyway."""
    return {} if wanted else {"use_bias": False}


def last_axes(shape: int | list[int]) -> Fields:
    """Normalizes over as many trailing axes as the shape has."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    axes = tuple(range(-len(sizes), 0))
    return {"num_features": sizes, "reduction_axes": axes, "feature_axes": axes}


def eps_or_machine(eps: float | None) -> Fields:
    """None means the machine epsilon of the computation, here float64."""
    return {"epsilon": float(np.finfo(np.float64).eps) if eps is None else eps}


def squared(eps: float) -> Fields:
    """PyTorch compares epsilon with a length; ours is added to a squared length."""
    return {"epsilon": eps**2}


def kept_axis(dim: int | None) -> Fields:
    """Maps an axis of (out, in, H, W) to one of (H, W, in, out); None and -1 mean one length for all."""
    return {"feature_axes": () if dim in (None, -1) else {0: -1, 1: -2, 2: 0, 3: 1}[dim]}


def named(parameter: str) -> Fields:
    """Selects the normalized parameter."""
    return {"variable_filter": {{"weight": "kernel"}.get(parameter, parameter)}}


def rows(theirs: str, *tried: tuple[str, Fields, tuple[int, ...]]) -> tuple[Row, ...]:
    """Rows for one constructor."""
    short = theirs.split(".")[-1]
    return tuple(Row(f"{short}-{name}", theirs, given, shape) for name, given, shape in tried)


NORM = {"eps": renamed("epsilon"), "affine": affine, "bias": has_bias}
TRACKED = NORM | {name: renamed(name) for name in ("num_features", "track_running_stats")}
ROWS, PIXELS, VIDEO = (8, 3, 6), (4, 3, 5, 4), (4, 3, 2, 3, 4)

BATCH = Peer(
    theirs=("nn.BatchNorm1d", "nn.BatchNorm2d", "nn.BatchNorm3d", "nn.SyncBatchNorm"),
    ours="BatchNorm",
    becomes=TRACKED | {"momentum": kept},
    always={"axis": 1, "unbiased": True},
    rows=(
        *rows(
            "nn.BatchNorm1d",
            ("defaults", {"num_features": 3}, (8, 3)),
            ("average", {"num_features": 3, "momentum": None}, ROWS),
            ("plain", {"num_features": 3, "affine": False}, (8, 3)),
            ("untracked", {"num_features": 3, "track_running_stats": False, "eps": 0.1}, ROWS),
            ("no_bias", {"num_features": 3, "bias": False, "momentum": 0.3}, (8, 3)),
        ),
        *rows(
            "nn.BatchNorm2d",
            ("moving", {"num_features": 3, "eps": 0.1, "momentum": 0.7, "bias": False}, PIXELS),
            ("still", {"num_features": 3, "affine": False, "track_running_stats": False}, PIXELS),
        ),
        *rows(
            "nn.BatchNorm3d",
            ("moving", {"num_features": 3, "eps": 0.1, "momentum": None, "bias": False}, VIDEO),
            ("still", {"num_features": 3, "affine": False, "track_running_stats": False}, VIDEO),
        ),
        *rows(
            "nn.SyncBatchNorm",
            ("defaults", {"num_features": 3}, (16, 3, 5)),
            ("moving", {"num_features": 3, "eps": 0.1, "momentum": None, "bias": False}, (16, 3)),
            ("still", {"num_features": 3, "affine": False, "track_running_stats": False}, (16, 3)),
        ),
    ),
)

LAYER = Peer(
    theirs=("nn.LayerNorm",),
    ours="LayerNorm",
    becomes={
        "normalized_shape": last_axes,
        "eps": renamed("epsilon"),
        "elementwise_affine": affine,
        "bias": has_bias,
    },
    always={},
    rows=rows(
        "nn.LayerNorm",
        ("defaults", {"normalized_shape": 6}, ROWS),
        ("two_axes", {"normalized_shape": [3, 6], "eps": 0.1}, ROWS),
        ("three_axes", {"normalized_shape": [3, 5, 4], "bias": False}, PIXELS),
        ("plain", {"normalized_shape": [4], "elementwise_affine": False}, PIXELS),
    ),
)

RMS = Peer(
    theirs=("nn.RMSNorm",),
    ours="RMSNorm",
    becomes={
        "normalized_shape": last_axes,
        "eps": eps_or_machine,
        "elementwise_affine": lambda wanted: {"use_scale": wanted},
    },
    always={},
    rows=rows(
        "nn.RMSNorm",
        ("defaults", {"normalized_shape": 6}, ROWS),
        ("two_axes", {"normalized_shape": [3, 6], "eps": 0.1}, ROWS),
        ("plain", {"normalized_shape": [4], "elementwise_affine": False}, PIXELS),
    ),
)

GROUP = Peer(
    theirs=("nn.GroupNorm",),
    ours="GroupNorm",
    becomes=NORM | {"num_groups": renamed("num_groups"), "num_channels": renamed("num_features")},
    always={"feature_axes": 1},
    rows=rows(
        "nn.GroupNorm",
        ("defaults", {"num_groups": 2, "num_channels": 6}, (4, 6, 5)),
        ("no_positions", {"num_groups": 3, "num_channels": 6, "eps": 0.1}, (4, 6)),
        ("one_group", {"num_groups": 1, "num_channels": 6, "bias": False}, (4, 6, 3, 2)),
        ("a_channel_each", {"num_groups": 6, "num_channels": 6, "affine": False}, (4, 6, 3, 2)),
    ),
)

MOVING = {"track_running_stats": True, "momentum": 0.7, "num_features": 3}
ALL_OF_INSTANCE_NORM = {**MOVING, "eps": 0.1, "affine": True, "bias": False}
INSTANCE = Peer(
    theirs=("nn.InstanceNorm1d", "nn.InstanceNorm2d", "nn.InstanceNorm3d"),
    ours="InstanceNorm",
    becomes=TRACKED | {"momentum": kept_by_instance_norm},
    always={"feature_axes": 1, "unbiased": True},
    rows=(
        *rows(
            "nn.InstanceNorm1d",
            ("defaults", {"num_features": 3}, ROWS),
            ("tracked", {"num_features": 3, "track_running_stats": True, "affine": True}, ROWS),
            ("frozen", {"num_features": 3, "track_running_stats": True, "momentum": None}, ROWS),
            ("no_bias", {"num_features": 3, "affine": True, "bias": False, "eps": 0.1}, ROWS),
        ),
        *rows("nn.InstanceNorm2d", ("options", ALL_OF_INSTANCE_NORM, PIXELS)),
        *rows("nn.InstanceNorm3d", ("options", ALL_OF_INSTANCE_NORM, VIDEO)),
    ),
)

LOCAL_RESPONSE = Peer(
    theirs=("nn.LocalResponseNorm",),
    ours="LocalResponseNorm",
    becomes={name: renamed(name) for name in ("size", "alpha", "beta", "k")},
    always={"feature_axes": 1},
    rows=rows(
        "nn.LocalResponseNorm",
        ("defaults", {"size": 5}, (2, 7, 3)),
        ("even", {"size": 4, "alpha": 0.3, "beta": 0.6, "k": 2.0}, (2, 7, 2, 3)),
        ("one", {"size": 1, "alpha": 0.3}, (2, 7, 2, 3, 2)),
    ),
)

PARAMETRIZATIONS = "nn.utils.parametrizations"
SPECTRAL = Peer(
    theirs=(f"{PARAMETRIZATIONS}.spectral_norm",),
    ours="SpectralNorm",
    becomes={
        "module": nothing,  # also our first argument
        "name": nothing,  # ours takes all parameters of rank 2 or more
        "n_power_iterations": renamed("n_steps"),
        "eps": squared,
        "dim": nothing,  # ours is the last axis, that of the outputs
    },
    always={},
    rows=rows(
        f"{PARAMETRIZATIONS}.spectral_norm",
        ("defaults", {"module": "Linear"}, (4, 3)),
        ("kernel", {"module": "Conv2d", "n_power_iterations": 3, "eps": 1e-6}, (4, 3, 2, 2)),
        ("transposed", {"module": "ConvTranspose2d"}, (4, 3, 2, 2)),
        ("dim", {"module": "Conv2d", "dim": 1}, (4, 3, 2, 2)),
        ("name", {"module": "Linear", "name": "other"}, (4, 3)),
    ),
)

WEIGHT = Peer(
    theirs=(f"{PARAMETRIZATIONS}.weight_norm",),
    ours="WeightNorm",
    becomes={"module": nothing, "name": named, "dim": kept_axis},
    always={"scale_init": None, "epsilon": 0.0},
    rows=rows(
        f"{PARAMETRIZATIONS}.weight_norm",
        ("defaults", {"module": "Linear"}, (4, 3)),
        ("inputs", {"module": "Linear", "dim": 1}, (4, 3)),
        ("all", {"module": "Linear", "dim": None}, (4, 3)),
        ("bias", {"module": "Linear", "name": "bias"}, (4, 3)),
        ("kernel", {"module": "Conv2d", "dim": 0}, (4, 3, 2, 2)),
        ("position", {"module": "Conv2d", "dim": 3}, (4, 3, 2, 2)),
        ("last_is_all", {"module": "Conv2d", "dim": -1}, (4, 3, 2, 2)),
    ),
)

NORMALIZE = Peer(
    theirs=("nn.functional.normalize",),
    ours="l2_normalize",
    becomes={"input": nothing, "p": nothing, "dim": renamed("reduction_axes"), "eps": squared},
    always={},
    rows=rows(
        "nn.functional.normalize",
        ("defaults", {}, (4, 3)),
        ("dim", {"dim": -1, "eps": 1e-6}, (4, 3, 5)),
        ("two_axes", {"dim": (1, 2)}, (4, 3, 5)),
    ),
)

LAYERS = (BATCH, LAYER, RMS, GROUP, INSTANCE, LOCAL_RESPONSE)
PEERS = (*LAYERS, SPECTRAL, WEIGHT, NORMALIZE)
