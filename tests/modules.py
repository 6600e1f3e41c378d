"""Data, common options and comparisons for testing our modules against Flax's."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Fields: TypeAlias = dict[str, Any]
KEY = jax.random.key(7)
_PLACES = {"params", "batch_stats", "layer_instance"}
_PLURALS = {"scales": "scale", "gains": "gain"}
ACTIVATIONS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
WEIGHTS = ("SpectralNorm", "WeightNorm", "WeightStandardization")
RANDOM: Fields = {
    "bias_init": nn.initializers.normal(),
    "scale_init": nn.initializers.uniform(2.0),
}
# Options that Flax's classes also have, in Linen and NNX.
OPTIONS: dict[str, dict[str, Fields]] = {
    "BatchNorm": {
        "default": {},
        "options": {"momentum": 0.8, "epsilon": 1e-3, "use_bias": False},
    },
    "LayerNorm": {
        "default": {},
        "axes": {"reduction_axes": (1, 2, 3), "feature_axes": (-1,)},
        "one and two axes": {"reduction_axes": 1, "feature_axes": (3, 1)},
        "no bias": {"use_bias": False, "epsilon": 1e-3},
        "neither": {"use_bias": False, "use_scale": False},
    },
    "RMSNorm": {
        "default": {},
        "axes": {"reduction_axes": (-1, -2), "feature_axes": (3, 1), "epsilon": 1e-3},
        "no scale": {"use_scale": False},
    },
    "GroupNorm": {
        "default": {},
        "size": {"num_groups": None, "group_size": 8, "epsilon": 1e-3},
        "axes": {"num_groups": 4, "reduction_axes": (2, 3)},
        "last axis": {"num_groups": 2, "reduction_axes": -1, "use_scale": False},
    },
    "InstanceNorm": {
        "default": {},
        "two axes": {"feature_axes": (2, 3), "epsilon": 1e-3},
        "first channel": {"feature_axes": 1},
        "neither": {"use_bias": False, "use_scale": False},
    },
}
CASES = [(name, option) for name, options in OPTIONS.items() for option in options]


def normal(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    """Well-scaled activations, for which Flax's fast variance is accurate."""
    values = jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    return (0.3 + 1.5 * values).astype(dtype)


X = normal((3, 4, 2, 32))
COTANGENT = normal(X.shape, seed=1)
MASK = jnp.arange(X.size).reshape(X.shape) % 3 != 1


def ramp(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """An initializer other than 0 and 1 that compiles faster than a random one."""
    del key
    return jnp.asarray(np.linspace(0.5, 2.0, math.prod(shape)).reshape(shape), dtype)


def compiled(f: Callable[..., Any], *args: Any) -> Any:
    """``f(*args)`` in one program, which compiles much faster than its operations separately."""
    return jax.jit(f)(*args)


def called(module: Any, f: Callable[..., Any], *args: Any) -> Any:
    """``f(module, *args)`` for an NNX module, in one program; updates the state of ``module``.

    Compiles once for each ``f`` and module structure.
    """
    graph, state = nnx.split(module)
    with promotion_of(module):
        out, state = _pure(graph, f, state, *args)
    nnx.update(module, state)
    return out


@partial(jax.jit, static_argnums=(0, 1))
def _pure(graph: Any, f: Callable[..., Any], state: Any, *args: Any) -> Any:
    module = nnx.merge(graph, state)
    out = f(module, *args)
    return out, nnx.state(module)


@contextmanager
def loose() -> Iterator[None]:
    """The implicit promotion that Flax needs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def promotion_of(module: Any) -> Any:
    """The promotion to call ``module`` with: our modules run under conftest's strict one."""
    return nullcontext() if type(module).__module__.startswith("jaxnorm") else loose()


def inits(name: str, init: Any = ramp) -> Fields:
    """Initializers for the parameters of the class ``name``."""
    return {"scale_init": init} if name == "RMSNorm" else {"scale_init": init, "bias_init": init}


def features_of(name: str, x: Any = X, **fields: Any) -> Any:
    """``num_features`` of NNX: the size or sizes of the feature axes."""
    axes = fields.get("axis" if name == "BatchNorm" else "feature_axes", -1)
    if isinstance(axes, int):
        return x.shape[axes]
    return tuple(x.shape[i] for i in sorted(axis % x.ndim for axis in axes))


def nnx_norm(system: Any, name: str, x: Any = X, seed: int = 0, **fields: Any) -> Any:
    """An NNX norm from Flax or from us, for ``x``."""
    return getattr(system, name)(features_of(name, x, **fields), rngs=nnx.Rngs(seed), **fields)


def flat(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of Linen variables or NNX state, by the parts of their paths that both have.

    Examples are ``scale`` of a norm, ``kernel`` of a wrapped layer, and ``kernel/u`` of a wrapper.
    """
    if isinstance(tree, nnx.Module | nnx.State):
        state = tree if isinstance(tree, nnx.State) else nnx.state(tree)
        pairs = [(_words(path), v[...]) for path, v in nnx.to_flat_state(state)]
    else:
        leaves = jax.tree.leaves_with_path(dict(tree))
        pairs = [(_words(tuple(key.key for key in path)), v) for path, v in leaves]
    found = {"/".join(words): np.asarray(v) for words, v in pairs if _is_number(v)}
    assert len(found) == sum(_is_number(v) for _, v in pairs), "two leaves of one name"
    return found


def load(module: Any, values: Mapping[str, Any]) -> None:
    """Sets the variables of an NNX module from a dictionary with names as in `flat`."""
    state = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState)))
    names = {"/".join(_words(path)): variable for path, variable in state}
    assert names.keys() == values.keys()
    for name, variable in names.items():
        assert (variable.shape, variable[...].dtype) == (values[name].shape, values[name].dtype)
        variable[...] = jnp.asarray(values[name])


def _words(path: tuple[Any, ...]) -> list[str]:
    """A path without the names of collections and of the wrapped layer."""
    parts = [part for key in path for part in (key if isinstance(key, tuple) else (key,))]
    words = [word for part in parts for word in str(part).split("/")]
    last = [_PLURALS[w] for w in words if w in _PLURALS]
    return [w for w in words if w not in _PLURALS and w not in _PLACES] + last


def _is_number(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def assert_close(ours: Any, theirs: Any, tolerance: float = 2e-5) -> None:
    """Compares the structure, shapes, dtypes and (approximate) values of two trees."""
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    chex.assert_trees_all_close(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Compares two trees bit for bit."""
    assert_close(ours, theirs, 0.0)


def moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """The names of arrays that have changed in any bit."""
    assert before.keys() == after.keys()
    return {n for n in before if not np.array_equal(before[n], after[n], equal_nan=True)}


def own(ours: Any, theirs: Any) -> list[str]:
    """Parameters of ``ours`` that ``theirs`` lacks, after checking that the signatures are compatible.

    The common parameters must have the same names, order and defaults, and be positional in both or
    neither. A parameter that is required in ``theirs`` may have a default in ``ours``.
    """
    mine, flaxs = (inspect.signature(inspect.unwrap(f)).parameters for f in (ours, theirs))
    assert [n for n in mine if n in flaxs] == list(flaxs)
    by_position = [
        [n for n, p in s.items() if p.kind is p.POSITIONAL_OR_KEYWORD] for s in (mine, flaxs)
    ]
    assert by_position[0] == by_position[1]
    for name, parameter in flaxs.items():
        assert mine[name].kind == parameter.kind, name
        if parameter.default is not parameter.empty:
            assert _plain(mine[name].default) == _plain(parameter.default), name
    return [n for n in mine if n not in flaxs]


def _plain(default: Any) -> Any:
    """Treats empty metadata as None."""
    return None if isinstance(default, Mapping) and not default else default
