"""The function or formula that each module class corresponds to, and values for its fields.

A class, in Linen and NNX alike, calls the public function that the registry names with its variables and
fields. `ROWS` says what is different: other values of fields, arguments after x, or arithmetic of its own (a
projection, a table, a convolution), which is written here in plain JAX.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from jaxnorm.norms._registry import REGISTRY, Norm
from tests.modules import Fields, _words, features_of, normal

SYSTEMS: dict[str, Any] = {"linen": jnl, "nnx": jnx}
CLASSES = sorted(
    {n for system in SYSTEMS.values() for n, o in vars(system).items() if inspect.isclass(o)}
)

BF16 = jnp.bfloat16
X = normal((4, 4, 2, 8))
MASK = (jnp.arange(X.size) % 3 != 1).reshape(X.shape)
POSITIONS = (jnp.arange(32) % 3 != 1).reshape(4, 4, 2, 1)
Variables: TypeAlias = dict[str, Any]
NONE: Mapping[str, Any] = MappingProxyType({})


# --- calls and references -------------------------------------------------------------------------


class Asked(NamedTuple):
    """A call of a module, with everything that the result depends on."""

    x: Any
    after: tuple[Any, ...]
    variables: Variables
    fields: Fields  # all fields, defaults included
    training: bool
    mask: Any = None

    def options(self, function: Callable[..., Any]) -> Fields:
        """The arguments of ``function`` after x that are fields, variables, or arguments of the call."""
        known = {**self.fields, **self.variables, "mask": self.mask}
        if "axis" in known:
            known["feature_axes"] = known["axis"]
        after = list(inspect.signature(function).parameters)[1:]
        return {name: known[name] for name in after if name in known}

    def named(self, *names: str) -> list[Any]:
        """The variables with these names, None for those that the module does not have."""
        return [self.variables.get(name) for name in names]

    @property
    def stats(self) -> Any:
        """The running statistics among the variables."""
        mean, var, count, matrix = self.named("mean", "var", "count", "matrix")
        if "remainder" in self.variables:
            return jn.InputStats(mean, var, count, self.variables["remainder"])
        if matrix is not None:
            return jn.WhiteningStats(mean, matrix)
        return jn.RunningStats(mean, var, count)


Answer: TypeAlias = tuple[Any, Variables]
"""The output, and the updated variables."""
Reference: TypeAlias = Callable[[Asked], Answer]


def kept(stats: Any) -> Variables:
    """Statistics as variables."""
    return {name: value for name, value in stats._asdict().items() if value is not None}


def plain(function: Callable[..., Any]) -> Reference:
    """A stateless function of x, the further arguments, and variables with the names of its parameters."""
    return lambda a: (function(a.x, *a.after, **a.options(function)), {})


def modes(train: Callable[..., Any], evaluate: Callable[..., Any]) -> Reference:
    """A function for training, which updates the running statistics, and another for evaluation."""

    def answer(a: Asked) -> Answer:
        if a.training:
            y, stats = train(a.x, a.stats, **a.options(train))
            return y, kept(stats)
        return evaluate(a.x, a.stats, **a.options(evaluate)), {}

    return answer


batch_norm = modes(jn.batch_norm, jn.batch_norm_inference)


def maybe_untracked(a: Asked) -> Answer:
    """Batch norm; without running statistics it always uses those of the batch."""
    if a.fields["track_running_stats"]:
        return batch_norm(a)
    options: Fields = a.options(jn.batch_norm) | {"momentum": 0.99}
    fresh = jn.init_running_stats(X.shape[-1])
    return jn.batch_norm(a.x, fresh, **options)[0], {}


def instance_norm(a: Asked) -> Answer:
    """Instance norm with or without running statistics."""
    if not a.fields["track_running_stats"]:
        return plain(jn.instance_norm)(a)
    return modes(jn.tracked_instance_norm, jn.batch_norm_inference)(a)


def batch_renorm(a: Asked) -> Answer:
    """Batch renorm with limits that are numbers or functions of the step count, after a warm-up."""
    steps = a.variables["steps"]
    limits: Fields = {n: a.fields[n] for n in ("rmax", "dmax")}
    limits = {n: limit(steps) if callable(limit) else limit for n, limit in limits.items()}
    for name, at_first in (("rmax", 1.0), ("dmax", 0.0)):
        limits[name] = jnp.where(steps < a.fields["warmup_steps"], at_first, limits[name])
    a = a._replace(fields=a.fields | limits)
    y, updated = modes(jn.batch_renorm, jn.batch_renorm_inference)(a)
    return y, {**updated, "steps": steps + 1} if a.training else {}


def act_norm(a: Asked) -> Answer:
    """Activation norm without the log-determinant."""
    return jn.act_norm(a.x, **a.options(jn.act_norm))[0], {}


def scale_norm(a: Asked) -> Answer:
    """Scale norm, which reduces over the feature axes."""
    options = a.options(jn.scale_norm) | {"reduction_axes": a.fields["feature_axes"]}
    return jn.scale_norm(a.x, **options), {}


def usual(norm: Norm) -> Reference:
    """The function of a norm, or its functions for training and evaluation."""
    train, *others = (getattr(jn, name) for name in norm.functions)
    if others and others[0].__name__.endswith("_inference"):
        return modes(train, others[0])
    return plain(train)


# --- modules with arithmetic of their own, in plain JAX ------------------------------------------


def wide(a: Any) -> Any:
    """Casts to float32."""
    return None if a is None else jnp.asarray(a, jnp.float32)


def narrowed(a: Asked, y: Any, *more: Any) -> Any:
    """Casts to the requested ``dtype``."""
    dtype = a.fields["dtype"] or jnp.float32
    return (y.astype(dtype), *(b.astype(dtype) for b in more)) if more else y.astype(dtype)


def over(a: Asked, per_example: Any) -> Any:
    """Reshapes (examples, *features) or (1, *features) to broadcast against x."""
    axes = a.fields["feature_axes"]
    features = {i % X.ndim for i in ((axes,) if isinstance(axes, int) else axes)}
    sizes = [n if i in features else 1 for i, n in enumerate(a.x.shape)]
    return per_example.reshape(len(per_example), *sizes[1:])


def standardized(a: Asked, reduced: tuple[int, ...], x: Any = None) -> Any:
    """(x - μ) / sqrt(σ² + ε) over unmasked elements; masked elements that are not finite read as μ."""
    x = a.x if x is None else x
    counted = jnp.ones(x.shape, bool) if a.mask is None else jnp.broadcast_to(a.mask, x.shape)
    mean = jnp.mean(x, reduced, keepdims=True, where=counted)
    var = jnp.mean((x - mean) ** 2, reduced, keepdims=True, where=counted)
    x = jnp.where(counted | jnp.isfinite(x), x, mean)
    return (x - mean) / jnp.sqrt(var + a.fields["epsilon"])


def adapted(a: Asked, y: Any) -> Answer:
    """Y · (1 + s) + b, where (s, b) = silu(c) @ kernel + bias; b may be missing, and a gate may follow."""
    (c,), kernel, bias = a.after, wide(a.variables["kernel"]), wide(a.variables["bias"])
    chunks = jnp.einsum("nc,ck...->nk...", c / (1 + jnp.exp(-c)), kernel) + bias[None]
    scale, *others = (over(a, chunks[:, i]) for i in range(kernel.shape[1]))
    shift = others.pop(0) if a.fields.get("use_shift", True) else 0
    y = y * (1 + scale) + shift
    return narrowed(a, y, *(jnp.broadcast_to(gate, y.shape) for gate in others)), {}


def ada_layer_norm(a: Asked) -> Answer:
    """Layer norm with scale and shift from the condition."""
    axes = a.fields["feature_axes"]
    return adapted(a, standardized(a, (axes,) if isinstance(axes, int) else axes))


def ada_rms_norm(a: Asked) -> Answer:
    """RMS norm with scale and shift from the condition; masked elements that are not finite read as 0."""
    axes = a.fields["feature_axes"]
    counted = jnp.ones(a.x.shape, bool) if a.mask is None else jnp.broadcast_to(a.mask, a.x.shape)
    x = jnp.where(counted | jnp.isfinite(a.x), a.x, 0)
    square = jnp.mean(x**2, axes, keepdims=True, where=counted)
    return adapted(a, x / jnp.sqrt(square + a.fields["epsilon"]))


def ada_group_norm(a: Asked) -> Answer:
    """Group norm with scale and shift from the condition."""
    options: Any = a._replace(variables={}).options(jn.group_norm) | {"dtype": None}
    return adapted(a, jn.group_norm(a.x, **options))


def convolved(x: Any, kernel: Any, bias: Any) -> Any:
    """A convolution of stride 1 that keeps the size, as a sum over its window."""
    (rows, columns), (h, w) = kernel.shape[:2], x.shape[1:3]
    padded = jnp.pad(x, [(0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)])
    window = [(i, j) for i in range(rows) for j in range(columns)]
    y = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in window)
    return y + bias.reshape(1, 1, 1, -1)


def spade_batch_norm(a: Asked) -> Answer:
    """SPADE on batch norm."""
    kept = {n: v for n, v in a.variables.items() if n in ("mean", "var", "count")}
    y, updated = batch_norm(a._replace(variables=kept, fields=a.fields | {"dtype": None}))
    return spade(a, y)[0], updated


def spade_group_norm(a: Asked) -> Answer:
    """SPADE on group norm."""
    options: Any = a._replace(variables={}).options(jn.group_norm) | {"dtype": None}
    return spade(a, jn.group_norm(a.x, **options))


def spade(a: Asked, bare: Any = None) -> Answer:
    """The norm · (1 + scale) + bias, both convolved from a map of (8, 1) resized to (4, 2)."""
    names = ("kernel", "bias", "affine_kernel", "affine_bias")
    kernel, bias, affine_kernel, affine_bias = map(wide, a.named(*names))
    drawn = jnp.repeat(a.after[0][:, ::2], 2, 2)
    hidden = jnp.maximum(convolved(drawn, kernel, bias), 0)
    affine = convolved(hidden, affine_kernel, affine_bias)
    features = a.x.shape[-1]
    bare = standardized(a, (1, 2)) if bare is None else bare
    y = bare * (1 + affine[..., :features]) + affine[..., features:]
    return narrowed(a, y), {}


def or_linear(norm: Reference) -> Reference:
    """An EvoNorm, or x · scale + bias if it has no nonlinearity."""

    def answer(a: Asked) -> Answer:
        if a.fields["nonlinearity"]:
            return norm(a)
        scale, bias = (over(a, p[None]) for p in a.named("scale", "bias"))
        return narrowed(a, a.x * scale + bias), {}

    return answer


def conditional_batch_norm(a: Asked) -> Answer:
    """Batch norm without scale and bias, followed by the rows of both tables for the labels."""
    (labels,), (scale, bias) = a.after, map(wide, a.named("scale", "bias"))
    bare = {n: v for n, v in a.variables.items() if n not in ("scale", "bias")}
    y, updated = batch_norm(a._replace(variables=bare, fields=a.fields | {"dtype": None}))
    y = y if scale is None else y * over(a, scale[labels])
    y = y if bias is None else y + over(a, bias[labels])
    return narrowed(a, y), updated


def domain_batch_norm(a: Asked) -> Answer:
    """Batch norm that uses and updates one row of the statistics."""
    (domain,), tables = a.after, kept(a.stats)
    rows = {name: table[domain] for name, table in tables.items()}
    y, updated = batch_norm(a._replace(variables=a.variables | rows))
    return y, {n: jnp.asarray(tables[n]).at[domain].set(new) for n, new in updated.items()}


def frozen_batch_norm(a: Asked) -> Answer:
    """A constant affine map, also in training; masked elements that are not finite read as the mean."""
    mean, var, scale, bias = (over(a, p[None]) for p in a.named("mean", "var", "scale", "bias"))
    x = a.x if a.mask is None else jnp.where(a.mask | jnp.isfinite(a.x), a.x, mean)
    return narrowed(a, (x - mean) / jnp.sqrt(var + a.fields["epsilon"]) * scale + bias), {}


# --- weights ---------------------------------------------------------------------------------------


def dense(weight_of: Callable[[Asked, str], Answer]) -> Reference:
    """Computes x @ kernel + bias, with the chosen weights replaced."""

    def answer(a: Asked) -> Answer:
        chosen = a.fields.get("variable_filter", {"kernel"})
        weights, updated = {n: a.variables[n] for n in ("kernel", "bias")}, {}
        for name in chosen:
            weights[name], more = weight_of(a, name)
            updated |= more
        return a.x @ wide(weights["kernel"]) + wide(weights["bias"]).reshape(1, 1, 1, -1), updated

    return answer


def of_weight(function: Callable[..., Any], *names: str) -> Reference:
    """A function of a weight and of the variables with these names under its path."""

    def weight_of(a: Asked, name: str) -> Answer:
        options = a.options(function)
        if options.get("feature_axes", 0) is None:
            options["feature_axes"] = ()
        under = a.named(*(f"{name}/{n}" for n in names))
        return function(a.variables[name], *under, **options), {}

    return dense(weight_of)


def spectral_norm(a: Asked, name: str) -> Answer:
    """Spectral norm, which stores its state in training."""
    weight = a.variables[name]
    if a.fields["n_steps"] == 0:
        return weight, {}
    state = jn.SpectralState(*a.named(f"{name}/u", f"{name}/sigma"))
    weight, updated = jn.spectral_norm(weight, state, **a.options(jn.spectral_norm))
    moved = {f"{name}/{n}": value for n, value in updated._asdict().items()}
    return weight, moved if a.training else {}


def function_of_weight(a: Asked, name: str) -> Answer:
    """Calls the function in the field."""
    return a.fields["function"](a.variables[name]), {}


# --- the table -------------------------------------------------------------------------------------


class Row(NamedTuple):
    """The reference of a class, and how to test it."""

    reference: Reference
    base: Mapping[str, Any] = NONE
    """Fields for every comparison, if any."""
    values: Mapping[str, tuple[Any, ...]] = NONE
    """Values of fields that are missing from `VALUES` or differ here."""
    after: Callable[[Fields, int], tuple[Any, ...]] = lambda fields, examples: ()
    """The arguments after x."""
    split: int = 0
    """The axis of x that is split over devices, to be pooled by ``axis_name``."""
    tolerance: float = 1e-6
    mask: Any = MASK


def start(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
    """An initializer that gives no parameter its default value."""
    del key
    return jnp.asarray(np.linspace(0.75, 2, math.prod(shape)).reshape(shape), dtype)


# A field means the same in every class.
VALUES: dict[str, tuple[Any, ...]] = {
    "epsilon": (0.5,),
    "momentum": (0.5, None),
    **{name: (True,) for name in ("unbiased", "unbiased_instances")},
    "feature_axes": ((1, 3),),
    "axis": ((1, 3),),
    "reduction_axes": ((2, 3),),
    "dtype": (BF16,),
    "param_dtype": (BF16,),
    "use_running_average": (True,),
    "use_fast_variance": (False,),
    "force_float32_reductions": (False,),
    "max_abs": (0.5,),
    "multiplier": (3.0,),
    "num_groups": (4,),
    "group_size": (2,),
    **{name: (False,) for name in ("norm_before_gate", "nonlinearity")},
    "track_running_stats": (False,),
    "virtual_batch_size": (2,),
    "activation": ("gelu",),
    "promote_dtype": (lambda values, dtype: tuple(None if v is None else 2 * v for v in values),),
    **{f"use_{what}": (False,) for what in ("scale", "key_scale", "bias", "threshold", "gain")},
    **{
        f"{what}_init": (start,)
        for what in ("scale", "bias", "v", "alpha", "shift", "threshold", "kernel", "gain")
    },
}
ONE_AXIS: dict[str, tuple[Any, ...]] = {"feature_axes": (1,)}
OF_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "feature_axes": (0,),
    "variable_filter": ({"bias"}, {"kernel", "bias"}),
}
ROWS: dict[str, Row] = {
    **{norm.layer: Row(usual(norm)) for norm in REGISTRY if norm.layer and norm.functions},
    "ActNorm": Row(act_norm),
    "AdaIN": Row(
        plain(jn.adain), values=ONE_AXIS, after=lambda _, n: (normal((n, 4, 5, 8), seed=5),)
    ),
    "AdaGroupNorm": Row(
        ada_group_norm,
        {"condition_features": 5, "num_groups": 2},
        {**ONE_AXIS, "condition_features": (3,), "num_groups": (4,)},
        lambda fields, n: (normal((n, fields["condition_features"]), seed=4),),
        tolerance=1e-5,
    ),
    "AdaRMSNorm": Row(
        ada_rms_norm,
        {"condition_features": 5},
        {"condition_features": (3,), "use_shift": (False,)},
        lambda fields, n: (normal((n, fields["condition_features"]), seed=4),),
        tolerance=1e-5,
    ),
    "AdaRMSNormZero": Row(
        ada_rms_norm,
        {"condition_features": 5},
        {"condition_features": (3,), "use_shift": (False,)},
        lambda fields, n: (normal((n, fields["condition_features"]), seed=4),),
        tolerance=1e-5,
    ),
    "AdaLayerNorm": Row(
        ada_layer_norm,
        {"condition_features": 5},
        {"condition_features": (3,)},
        lambda fields, n: (normal((n, fields["condition_features"]), seed=4),),
        tolerance=1e-5,
    ),
    "AdaLayerNormZero": Row(
        ada_layer_norm,
        {"condition_features": 5},
        {"condition_features": (3,)},
        lambda fields, n: (normal((n, fields["condition_features"]), seed=4),),
        tolerance=1e-5,
    ),
    **{
        name: Row(
            plain(function),
            values={"scale_offset": (1.0,)},
            after=lambda _, n: (normal((n, *X.shape[1:]), seed=5),),
        )
        for name, function in (
            ("AddLayerNorm", jn.add_layer_norm),
            ("AddRMSNorm", jn.add_rms_norm),
        )
    },
    "BatchNorm": Row(maybe_untracked),
    "BatchRenorm": Row(
        batch_renorm,
        values={
            "rmax": (1.5, lambda steps: 1 + steps.astype(jnp.float32) / 8),
            "dmax": (0.25, lambda steps: steps.astype(jnp.float32) / 16),
            "form": ("crossq",),
            "warmup_steps": (5,),
        },
    ),
    "ConditionalBatchNorm": Row(
        conditional_batch_norm,
        {"num_classes": 3},
        {"num_classes": (5,)},
        lambda fields, n: (jnp.arange(n) * 2 % fields["num_classes"],),
        tolerance=1e-5,
    ),
    "DomainBatchNorm": Row(
        domain_batch_norm,
        {"num_domains": 2},
        {"num_domains": (3,)},
        lambda fields, n: (jnp.int32(fields["num_domains"] - 1),),
    ),
    "EvoNormB0": Row(or_linear(modes(jn.evo_norm_b0, jn.evo_norm_b0_inference))),
    "EvoNormB1": Row(or_linear(modes(jn.evo_norm_b1, jn.evo_norm_b1_inference))),
    "EvoNormB2": Row(or_linear(modes(jn.evo_norm_b2, jn.evo_norm_b2_inference))),
    "EvoNormS0": Row(or_linear(plain(jn.evo_norm_s0)), {"num_groups": 2}, ONE_AXIS, split=1),
    "EvoNormS1": Row(or_linear(plain(jn.evo_norm_s1)), {"num_groups": 2}, ONE_AXIS, split=1),
    "EvoNormS2": Row(or_linear(plain(jn.evo_norm_s2)), {"num_groups": 2}, ONE_AXIS, split=1),
    "FilterResponseNorm": Row(plain(jn.filter_response_norm), split=1),
    "FrozenBatchNorm": Row(frozen_batch_norm, tolerance=1e-5),
    "GhostBatchNorm": Row(
        maybe_untracked, {"virtual_batch_size": 2}, {"virtual_batch_size": (1, None)}
    ),
    "GatedRMSNorm": Row(
        plain(jn.gated_rms_norm), after=lambda _, n: (normal((n, *X.shape[1:]), seed=5),)
    ),
    "GroupNorm": Row(plain(jn.group_norm), {"num_groups": 2}, ONE_AXIS, split=1),
    "InstanceNorm": Row(instance_norm, {"track_running_stats": True}, split=1),
    "IterativeWhitening": Row(
        modes(jn.iterative_whitening, jn.iterative_whitening_inference),
        values={**ONE_AXIS, "momentum": (0.5,), "steps": (3,)},
        mask=POSITIONS,
    ),
    "LayerNorm": Row(plain(jn.layer_norm), split=-1),
    "LocalResponseNorm": Row(
        plain(jn.local_response_norm),
        values={**ONE_AXIS, "size": (3,), "alpha": (0.5,), "beta": (2.0,), "k": (1.5,)},
    ),
    "MagnitudePreserving": Row(
        of_weight(jn.magnitude_preserving), values=OF_WEIGHTS, tolerance=1e-5
    ),
    "PixelNorm": Row(plain(jn.pixel_norm), split=-1),
    "QKNorm": Row(
        plain(jn.qk_norm),
        {"kind": "layer", "use_bias": True, "feature_axes": (2, 3), "num_key_heads": 5},
        {"kind": ("rms", "l2"), "num_key_heads": (3,), "scale_offset": (1.0,)},
        # Heads are the third axis or, with feature_axes=(1, 3), the second.
        lambda fields, n: (normal((n, *(fields["num_key_heads"],) * 2, 8), seed=5),),
    ),
    "RMSNorm": Row(
        plain(jn.rms_norm),
        values={"scale_offset": (1.0,), "fraction": (0.5,)},
        split=-1,
    ),
    "Reparameterized": Row(
        dense(function_of_weight),
        {"function": jnp.tanh},
        {"function": (jnp.sinh,), **OF_WEIGHTS},
    ),
    "ScaleNorm": Row(scale_norm, split=-1),
    "ScaledWeightStandardization": Row(
        of_weight(jn.scaled_weight_standardization, "gain"),
        {"use_gain": True},
        OF_WEIGHTS,
        tolerance=1e-5,
    ),
    "SimNorm": Row(plain(jn.sim_norm), {"simplex_size": 4}, {**ONE_AXIS, "simplex_size": (2,)}),
    "Spade": Row(
        spade,
        {"map_channels": 3, "hidden": 4},
        {"map_channels": (6,), "hidden": (5,), "kernel_size": (1,)},
        lambda fields, n: (normal((n, 8, 1, fields["map_channels"]), seed=6),),
        tolerance=1e-4,
    ),
    "SpadeBatchNorm": Row(
        spade_batch_norm,
        {"map_channels": 3, "hidden": 4},
        {"map_channels": (6,), "hidden": (5,), "kernel_size": (1,)},
        lambda fields, n: (normal((n, 8, 1, fields["map_channels"]), seed=6),),
        tolerance=1e-4,
    ),
    "SpadeGroupNorm": Row(
        spade_group_norm,
        {"map_channels": 3, "hidden": 4, "num_groups": 2},
        {"map_channels": (6,), "hidden": (5,), "kernel_size": (1,), "num_groups": (4,)},
        lambda fields, n: (normal((n, 8, 1, fields["map_channels"]), seed=6),),
        tolerance=1e-4,
    ),
    "SpectralNorm": Row(
        dense(spectral_norm), values={"n_steps": (3, None, 0), "update_stats": (False,)}
    ),
    "WeightNorm": Row(
        of_weight(jn.weight_norm, "scale"), values={**OF_WEIGHTS, "feature_axes": (0, None)}
    ),
    "WeightStandardization": Row(
        of_weight(jn.weight_standardization, "gain"), {"use_gain": True}, OF_WEIGHTS
    ),
}


# --- modules and their variables -------------------------------------------------------------------


def fields_of(system: str, name: str) -> dict[str, Any]:
    """The fields of a class with their defaults; `inspect.Parameter.empty` if there is none."""
    cls = getattr(SYSTEMS[system], name)
    if system == "nnx":
        parameters = inspect.signature(cls.__init__).parameters
        return {n: p.default for n, p in parameters.items() if n != "self"}
    found = {}
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        missing = default is dataclasses.MISSING
        found[field.name] = inspect.Parameter.empty if missing else default
    return found


def systems_with(name: str, *fields: str) -> list[str]:
    """The systems whose class has these fields."""
    return [system for system in SYSTEMS if set(fields) <= set(fields_of(system, name))]


def is_wrapper(name: str) -> bool:
    """Whether a class wraps a layer."""
    return "layer_instance" in fields_of("linen", name)


def has_modes(name: str) -> bool:
    """Whether training and evaluation differ."""
    return name == "SpectralNorm" or "use_running_average" in fields_of("linen", name)


def made(system: str, name: str, fields: Fields) -> Any:
    """Creates a module; a wrapper gets a dense layer."""
    cls, rngs = getattr(SYSTEMS[system], name), nnx.Rngs(0)
    if "variable_filter" in fields and system == "nnx":
        fields = fields | {
            "variable_filter": tuple(map(nnx.PathContains, fields["variable_filter"]))
        }
    if is_wrapper(name):
        layer = nn.Dense(3) if system == "linen" else nnx.Linear(X.shape[-1], 3, rngs=rngs)
        return cls(layer, **fields) if system == "linen" else cls(layer, **fields, rngs=rngs)
    if system == "linen":
        return cls(**fields)
    return cls(
        features_of("BatchNorm" if "axis" in fields else name, X, **fields), **fields, rngs=rngs
    )


def variables_of(module: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables of an NNX module by name."""
    state = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState)))
    return {"/".join(_words(path)): variable for path, variable in state}


def by_name(tree: Any) -> Variables:
    """Linen variables with the names of their NNX counterparts."""
    leaves = jax.tree.leaves_with_path(dict(tree))
    return {"/".join(_words(tuple(key.key for key in path))): value for path, value in leaves}


def after_of(name: str, fields: Fields, examples: int) -> tuple[Any, ...]:
    """The arguments of the module after x."""
    return ROWS[name].after({**fields_of("linen", name), **fields}, examples)
