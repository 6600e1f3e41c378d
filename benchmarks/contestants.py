"""The norms of each library: its own layers, with given parameters and running statistics.

All libraries use epsilon 1e-5, float32 parameters, and y in the dtype of x. PyTorch is in `torch_peer`.

Flax and Haiku have channels last, like jaxnorm. Equinox's layers take one example with channels first: they
are mapped over the examples, and activations with spatial axes are transposed inside the program.
Haiku's layers compute in the promoted dtype of x and the parameters, so y is cast.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm as jn
from benchmarks.cases import EPSILON, Case, Dtype, Norm, Phase

Arrays: TypeAlias = tuple[jax.Array, ...]
# x, (scale, bias), (mean, var) -> y, and the updated running statistics
Forward: TypeAlias = Callable[[jax.Array, Arrays, Arrays], tuple[jax.Array, Any]]

Peer: TypeAlias = Literal["Flax Linen", "Flax NNX", "Haiku", "Equinox", "PyTorch"]
OURS, FLAX = "jaxnorm", "Flax Linen"
LIBRARIES: tuple[str, ...] = (OURS, *get_args(Peer))
MODULES = {
    OURS: "jaxnorm",
    FLAX: "flax",
    "Flax NNX": "flax",
    "Haiku": "haiku",
    "Equinox": "equinox",
    "PyTorch": "torch",
}
DISTRIBUTIONS = {"Haiku": "dm-haiku", "Equinox": "equinox", "PyTorch": "torch"}

# Library, norm, phase, dtype: results that differ from the others' and are left out, with the reason.
DIFFERENCES: dict[tuple[str, Norm, Phase, Dtype], str] = {
    ("PyTorch", "layer", "both", "bfloat16"): "the gradients of scale and bias are summed in "
    "bfloat16, and are off by several percent",
}


def installed(libraries: tuple[str, ...] = LIBRARIES) -> tuple[str, ...]:
    """Returns the libraries that can be imported and can run on JAX's devices."""
    return tuple(
        name
        for name in libraries
        if find_spec(MODULES[name])
        and (
            name != "PyTorch"
            or jax.default_backend() == "cpu"
            or import_module("torch").cuda.is_available()
        )
    )


def ours(case: Case, train: bool) -> Forward:
    """The functions of `jaxnorm`."""
    norm = {
        "layer": jn.layer_norm,
        "rms": jn.rms_norm,
        "group": partial(jn.group_norm, num_groups=case.num_groups),
        "instance": jn.instance_norm,
    }.get(case.norm)

    def forward(x: jax.Array, parameters: Arrays, stats: Arrays) -> tuple[jax.Array, Any]:
        options: dict[str, Any] = {"epsilon": EPSILON, "dtype": x.dtype}
        if norm is not None:
            return norm(x, *parameters, **options), ()
        running = jn.RunningStats(*stats)
        if train:
            return jn.batch_norm(x, running, *parameters, **options)
        return jn.batch_norm_inference(x, running, *parameters, **options), running

    return forward


def linen(case: Case, train: bool) -> Forward:
    """The layers of `flax.linen`."""
    layers: dict[str, Callable[..., nn.Module]] = {
        "batch": partial(nn.BatchNorm, use_running_average=not train),
        "layer": nn.LayerNorm,
        "rms": nn.RMSNorm,
        "group": partial(nn.GroupNorm, num_groups=case.num_groups),
        "instance": nn.InstanceNorm,
    }

    def forward(x: jax.Array, parameters: Arrays, stats: Arrays) -> tuple[jax.Array, Any]:
        variables = {
            "params": dict(zip(("scale", "bias"), parameters, strict=False)),
            "batch_stats": dict(zip(("mean", "var"), stats, strict=False)),
        }
        layer = layers[case.norm](epsilon=EPSILON, dtype=x.dtype)
        y: Any = layer.apply(variables, x, mutable=["batch_stats"])
        return y

    return forward


def of_nnx(case: Case, train: bool) -> Forward:
    """The layers of `flax.nnx`."""
    layers: dict[str, Callable[..., Any]] = {
        "batch": partial(nnx.BatchNorm, use_running_average=not train),
        "layer": nnx.LayerNorm,
        "rms": nnx.RMSNorm,
        "group": partial(nnx.GroupNorm, num_groups=case.num_groups),
        "instance": nnx.InstanceNorm,
    }

    def forward(x: jax.Array, parameters: Arrays, stats: Arrays) -> tuple[jax.Array, Any]:
        layer = layers[case.norm](x.shape[-1], epsilon=EPSILON, dtype=x.dtype, rngs=nnx.Rngs(0))
        given = dict(zip(("scale", "bias"), parameters, strict=False))
        given |= dict(zip(("mean", "var"), stats, strict=False))
        for name, value in given.items():
            getattr(layer, name)[...] = value
        y = layer(x)
        return y, (layer.mean[...], layer.var[...]) if stats else ()

    return forward


def haiku(case: Case, train: bool) -> Forward:
    """The layers of Haiku."""
    hk: Any = import_module("haiku")

    options: dict[str, Any] = {"eps": EPSILON, "create_scale": True, "name": "norm"}
    biased = {**options, "create_offset": True}
    layers: dict[str, Callable[[], Callable[..., jax.Array]]] = {
        "batch": lambda: partial(hk.BatchNorm(decay_rate=0.99, **biased), is_training=train),
        "layer": lambda: hk.LayerNorm(axis=-1, param_axis=-1, **biased),
        "rms": lambda: hk.RMSNorm(axis=-1, param_axis=-1, **options),
        "group": lambda: hk.GroupNorm(case.num_groups, **biased),
        "instance": lambda: hk.InstanceNorm(**biased),
    }
    apply = hk.transform_with_state(lambda x: layers[case.norm]()(x)).apply

    def forward(x: jax.Array, parameters: Arrays, stats: Arrays) -> tuple[jax.Array, Any]:
        def stored(a: jax.Array) -> jax.Array:  # its parameters have the rank of x
            return a.reshape((1,) * (x.ndim - 1) + a.shape) if stats else a

        params = {"norm": dict(zip(("scale", "offset"), map(stored, parameters), strict=False))}
        state = {
            f"norm/~/{name}_ema": {
                "counter": jnp.zeros((), jnp.int32),
                "hidden": jnp.zeros_like(stored(value)),
                "average": stored(value),
            }
            for name, value in zip(("mean", "var"), stats, strict=False)
        }
        y, state = apply(params, state, None, x)
        return y.astype(x.dtype), state

    return forward


def equinox(case: Case, train: bool) -> Forward | None:
    """The layers of Equinox, which has no instance norm."""
    eqx: Any = import_module("equinox")

    def given(layer: Any, parameters: Arrays) -> Any:
        """Returns the layer with these parameters."""
        names = ("weight", "bias")[: len(parameters)]
        return eqx.tree_at(lambda x: [getattr(x, name) for name in names], layer, parameters)

    def of_rows(x: jax.Array, parameters: Arrays, stats: Arrays) -> tuple[jax.Array, Any]:
        layer = (
            eqx.nn.LayerNorm(x.shape[-1], EPSILON)
            if case.norm == "layer"
            else eqx.nn.RMSNorm(x.shape[-1], EPSILON, use_bias=False)
        )
        y = jax.vmap(given(layer, parameters))(x.reshape(-1, x.shape[-1]))
        return y.reshape(x.shape), stats

    def of_groups(x: jax.Array, parameters: Arrays, stats: Arrays) -> tuple[jax.Array, Any]:
        layer = eqx.nn.GroupNorm(case.num_groups, x.shape[-1], EPSILON)
        y = jax.vmap(given(layer, parameters))(jnp.moveaxis(x, -1, 1))
        return jnp.moveaxis(y, 1, -1).astype(x.dtype), stats

    def of_batches(x: jax.Array, parameters: Arrays, stats: Arrays) -> tuple[jax.Array, Any]:
        layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
            x.shape[-1], "batch", EPSILON, inference=not train, mode="batch"
        )
        state = state.set(layer.batch_state_index, stats)
        mapped = jax.vmap(given(layer, parameters), (0, None), (0, None), axis_name="batch")
        y, state = mapped(jnp.moveaxis(x, -1, 1), state)
        return jnp.moveaxis(y, 1, -1).astype(x.dtype), state

    forwards = {"layer": of_rows, "rms": of_rows, "group": of_groups, "batch": of_batches}
    return forwards.get(case.norm)


# The libraries that are written in JAX; the result is None if a library lacks the norm.
IN_JAX: dict[str, Callable[[Case, bool], Forward | None]] = {
    OURS: ours,
    FLAX: linen,
    "Flax NNX": of_nnx,
    "Haiku": haiku,
    "Equinox": equinox,
}
