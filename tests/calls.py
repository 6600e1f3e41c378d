"""How tests call every public function: small arguments for each of its parameters, by name."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm as jn
from tests import reference
from tests.cases import draw
from tests.oracle import wide

SHAPE = (4, 4, 2, 4)  # channels are last or, with feature_axes=1, second
FEATURES = SHAPE[-1]
ELSEWHERE = {
    "init_running_stats": "tests/core/test_running.py",
    "init_whitening": "tests/norms/test_zoo_facts.py",
    "init_spectral_norm": "tests/norms/test_spectral_norm.py",  # it is random
}
"""Functions whose options have their own tests."""
DEVICE_OPTIONS = ("axis_name", "axis_index_groups")  # tests/norms/test_pooling.py

_RNG = np.random.default_rng(7)


def _normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Any:
    return draw(_RNG, shape, "float32", mean, std)


def _positive(*shape: int) -> Any:
    return np.abs(_normal(*shape)) + np.float32(0.5)


def pattern(shape: tuple[int, ...]) -> np.ndarray:
    """A mask that keeps two of any three neighbors along every axis."""
    return np.indices(shape).sum(0) % 3 != 0


X = _normal(*SHAPE, mean=0.5, std=1.5)
MASK = pattern(SHAPE)
POSITIONS = MASK[..., :1]  # the same for all channels
MASKS: dict[str, Any] = dict.fromkeys(
    ("iterative_whitening", "iterative_whitening_inference"), POSITIONS
)
"""Masks of functions that do not accept MASK."""
STATS = jn.RunningStats(
    *(jnp.array(a, jnp.float32) for a in ([0.3, -0.2, 1.0, -3.0], [1.0, 2.0, 4.0, 0.1]))
)
DOMAINS = jn.RunningStats(*(jnp.stack([a, 2 * a]) for a in STATS[:2]))
INPUTS: dict[str, Any] = {
    "x": X,
    "y": X,
    "style": _normal(4, 4, 5, 4, mean=1.0, std=2.0),
    "query": _normal(3, 4, 2, FEATURES),
    "key": _normal(5, 4, 2, FEATURES),
    "kernel": _normal(3, 4, 2, 4, mean=0.4),
    "image": _normal(1, 5, 4, 2),
    "stats": STATS,
    "state": jn.SpectralState(jnp.asarray(_normal(1, 4)), jnp.float32(1)),
    "moments": jn.Moments(
        *(jnp.array(a, jnp.float32) for a in ([1, 2, -1, 0], [3, 2, 1, 1], [1, 2, 9, 0]))
    ),
    "gate": np.linspace(-1, 2, FEATURES, dtype=np.float32).reshape(1, 1, 1, FEATURES),
    "reduction_axes": (0, 1, 2),
    "alpha": np.float32(0.8),
    "shift": np.float32(0.3),
    "running_share": 0.25,
    "size": 3,
    **{name: _positive(FEATURES) for name in ("scale", "gain", "v", "query_scale", "key_scale")},
    **{name: _normal(FEATURES) for name in ("bias", "log_scale", "threshold")},
    **{name: _normal(3) for name in ("mean_weights", "var_weights")},
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ada_group_norm": {
        "scale": _normal(4, FEATURES),
        "shift": _normal(4, FEATURES),
        "num_groups": 2,
    },
    "ada_layer_norm": {"scale": _normal(4, FEATURES), "shift": _normal(4, FEATURES)},
    "ada_rms_norm": {"scale": _normal(4, FEATURES), "shift": _normal(4, FEATURES)},
    "add_layer_norm": {"residual": X[::-1]},
    "add_rms_norm": {"residual": X[::-1]},
    "combine": {"a": INPUTS["moments"], "b": INPUTS["moments"]},
    "conv_spectral_norm": {"kernel": _normal(3, 3, 2, 3)},
    **{f"evo_norm_s{i}": {"num_groups": 2} for i in (0, 1, 2)},
    "group_norm": {"num_groups": 2},
    "iterative_whitening": {
        "stats": jn.WhiteningStats(
            jnp.asarray(_normal(FEATURES)), jnp.asarray(_normal(FEATURES, FEATURES))
        )
    },
    "init_input_norm": {"feature_shape": FEATURES},
    "magnitude_preserving": {"gain": np.float32(3.0)},
    "modulate": {"scale": _normal(4, FEATURES), "bias": _normal(4, FEATURES)},
    "pool": {"m": INPUTS["moments"], "axes": 0},
    "scale_norm": {"scale": np.float32(3.0)},
    "sim_norm": {"simplex_size": 2},
    "stats_of_domain": {"stats": DOMAINS, "domain": 1},
    "with_stats_of_domain": {"stats": DOMAINS, "domain": 1, "updated": STATS},
}
ARGUMENTS["iterative_whitening_inference"] = ARGUMENTS["iterative_whitening"]
INPUT_STATS = jn.InputStats(
    STATS.mean, STATS.var, jnp.full(FEATURES, 40.0), jnp.zeros((3, FEATURES))
)
ARGUMENTS |= {
    name: {"stats": INPUT_STATS}
    for name in ("input_norm", "input_norm_inference", "input_norm_inverse")
}
"""Arguments for functions that need other inputs."""
# In these functions the parameter is an option, like epsilon, not an input.
_OPTIONS_THERE = {
    ("lp_normalize", "reduction_axes"),
    ("local_response_norm", "alpha"),
    *((name, "reduction_axes") for name in ("layer_norm", "rms_norm", "group_norm")),
    *((name, "reduction_axes") for name in ("l2_normalize", "scale_norm", "qk_norm")),
}


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of a public function."""
    return dict(inspect.signature(getattr(jn, name)).parameters)


def functions(*having: str) -> list[str]:
    """The public functions that take arguments, or those with all of the given parameters."""
    names = (name for name in sorted(vars(jn)) if inspect.isfunction(getattr(jn, name)))
    return [name for name in names if {*having} <= parameters(name).keys() != set()]


def options(name: str) -> list[str]:
    """The parameters of a function that have a default or are keyword-only."""
    return [
        p.name
        for p in parameters(name).values()
        if p.default is not p.empty or p.kind is p.KEYWORD_ONLY
    ]


def arguments(name: str) -> dict[str, Any]:
    """All inputs of a function, by name; its other options have their defaults."""
    found = {}
    for parameter in parameters(name):
        if parameter in ARGUMENTS.get(name, {}):
            found[parameter] = ARGUMENTS[name][parameter]
        elif parameter in INPUTS and (name, parameter) not in _OPTIONS_THERE:
            found[parameter] = INPUTS[parameter]
    return found


def leaves(result: Any) -> list[jax.Array]:
    """The leaves of a result. What rounding left out of statistics is added to them."""

    def whole(part: Any) -> Any:
        if isinstance(part, jn.InputStats):
            return [a + b for a, b in zip(part[:3], part.remainder, strict=True)]
        return part

    return jax.tree.leaves(
        jax.tree.map(whole, result, is_leaf=lambda part: isinstance(part, jn.InputStats))
    )


def expected(name: str, given: dict[str, Any]) -> tuple[Any, ...]:
    """The results of the reference, in float64."""
    formula: Callable[..., Any] = getattr(reference, name)
    known = {k: v for k, v in given.items() if k not in ("dtype", *DEVICE_OPTIONS)}
    return tuple(np.asarray(leaf) for leaf in formula(**jax.tree.map(_widened, known)))


def _widened(leaf: Any) -> Any:
    """Casts floating arrays to float64; leaves masks and options as they are."""
    if isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return wide(leaf) if floating else np.asarray(leaf)
    return leaf
