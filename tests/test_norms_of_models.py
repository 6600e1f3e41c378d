"""The lines of "Which norm does this model use?" compute what the models' own code computes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

PAGE = Path(__file__).parents[1] / "docs" / "norms-of-models.md"
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split(" | "))
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and "`" in line
]
LINES = sorted({re.fullmatch(r"`(.*)`", row[2]).group(1) for row in ROWS})  # pyright: ignore[reportOptionalMemberAccess]

_RNG = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return _RNG.normal(0.5, 2, shape)


N, H, W, C = 3, 4, 2, 16
HEADS, D = 2, 8
GIVEN: dict[str, Any] = {
    "x": _normal(N, H, W, C),
    "residual": _normal(N, H, W, C),
    "gate": _normal(N, H, W, C),
    "q": _normal(N, H, HEADS, D),
    "k": _normal(N, H, HEADS, D),
    "scale": _normal(C),
    "bias": _normal(C),
    "d_scale": _normal(D),
    "heads_scale": _normal(HEADS, D),
    "temperatures": _normal(HEADS),
    "c_scale": _normal(N, C),
    "c_shift": _normal(N, C),
    "pixel_scale": _normal(N, H, W, C),
    "pixel_shift": _normal(N, H, W, C),
    "table": _normal(2, C),
    "kernel": _normal(3, 3, 4, C),
    "gain": _normal(C),
    "stats": jn.RunningStats(jnp.zeros(C), jnp.ones(C)),
    "input_stats": jn.init_input_norm(C),
}


# --- the models' formulas ---------------------------------------------------------------------------


def rms(x: Any, axes: Any = -1, epsilon: float = 1e-6) -> Any:
    """Divides by the root mean square: x / sqrt(mean x² + ε)."""
    return x / np.sqrt(np.mean(x**2, axes, keepdims=True) + epsilon)


def standardized(x: Any, axes: Any = -1, epsilon: float = 1e-6) -> Any:
    """(x - μ) / sqrt(σ² + ε)."""
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def grouped(x: Any, f: Callable[[Any], Any], size: int = C // 2) -> Any:
    """Applies ``f`` to groups of features."""
    return f(x.reshape(*x.shape[:-1], -1, size)).reshape(x.shape)


def of_groups(x: Any) -> Any:
    """PyTorch's group norm with two groups."""
    return grouped(x, lambda x: standardized(x, (1, 2, 4), 1e-5))


def unit(x: Any, axes: Any = -1) -> Any:
    """Divides by the length: x / |x|."""
    return x / np.linalg.norm(x, axis=axes, keepdims=True)


def silu(x: Any) -> Any:
    """Computes x · sigmoid(x)."""
    return x / (1 + np.exp(-x))


def softmax(x: Any) -> Any:
    """exp(x) / Σ exp(x)."""
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def all_positions(a: Any) -> Any:
    """Values of examples, for all their positions."""
    return a[:, None, None]


def of_heads(f: Callable[[Any], Any]) -> tuple[Any, Any]:
    """``f`` of queries and keys."""
    return f(GIVEN["q"]), f(GIVEN["k"])


def global_response(x: Any, scale: Any, bias: Any) -> Any:
    """ConvNeXt V2."""
    length = np.sqrt((x**2).sum((1, 2), keepdims=True))
    return x + scale * (x * length / (length.mean(-1, keepdims=True) + 1e-6)) + bias


def batch_renorm(x: Any) -> Any:
    """CrossQ's, with a running mean of 0 and a running variance of 1."""
    mean, var, running = x.mean((0, 1, 2)), x.var((0, 1, 2)), np.sqrt(1 + 1e-3)
    r = np.clip(np.sqrt(var + 1e-3) / running, 1 / 3, 3)
    d = np.clip(mean / running, -5, 5)
    return (x - mean + d * np.sqrt(var) / r) / np.sqrt(var / r**2 + 1e-3)


def input_norm(x: Any) -> Any:
    """Of the first batch."""
    return np.clip(standardized(x, (0, 1, 2), 1e-8), -10, 10)


def magnitude_preserving(kernel: Any) -> Any:
    """Each output has length 1, as EDM2's weights divided by the root of their fan-in."""
    fan_in = kernel[..., 0].size
    length = np.sqrt((kernel**2).sum((0, 1, 2)))
    return kernel / (1e-4 + length / np.sqrt(fan_in)) / np.sqrt(fan_in)


def weights(kernel: Any, epsilon: float, gain: Any = 1.0) -> Any:
    """Standardized over the inputs of each output."""
    return standardized(kernel, (0, 1, 2), epsilon) * gain


def scaled_weights(kernel: Any, gain: Any) -> Any:
    """NFNet's."""
    fan_in = kernel[..., 0].size
    centered = kernel - kernel.mean((0, 1, 2))
    return centered / np.sqrt(np.maximum(kernel.var((0, 1, 2)) * fan_in, 1e-4)) * gain


BATCH = (0, 1, 2)
FORMULAS: dict[str, Callable[[Any], Any]] = {
    "jn.rms_norm(x, scale, scale_after_cast=True)": lambda g: rms(g.x) * g.scale,
    "jn.rms_norm(x, scale, scale_offset=1.0)": lambda g: rms(g.x) * (1 + g.scale),
    "jn.qk_norm(q, k, d_scale, d_scale, scale_offset=1.0)": lambda g: of_heads(
        lambda x: rms(x) * (1 + g.d_scale)
    ),
    "jn.qk_norm(q, k, d_scale, d_scale)": lambda g: of_heads(lambda x: rms(x) * g.d_scale),
    "jn.gated_rms_norm(x, gate, scale)": lambda g: rms(g.x) * g.scale * silu(g.gate),
    "jn.gated_rms_norm(x, gate, scale, norm_before_gate=False, num_groups=2)": lambda g: (
        grouped(g.x * silu(g.gate), rms) * g.scale
    ),
    "jn.qk_norm(q, k, heads_scale, heads_scale, reduction_axes=(-2, -1), feature_axes=(-2, -1))": (
        lambda g: of_heads(lambda x: rms(x, (-2, -1)) * g.heads_scale)
    ),
    'jn.qk_norm(q, k, heads_scale, heads_scale, kind="layer", feature_axes=(-2, -1))': lambda g: (
        of_heads(lambda x: standardized(x) * g.heads_scale)
    ),
    "jn.layer_norm(x, scale, bias, epsilon=1e-5)": lambda g: (
        standardized(g.x, epsilon=1e-5) * g.scale + g.bias
    ),
    "jn.add_rms_norm(x, residual, scale)": lambda g: (
        rms(g.x + g.residual) * g.scale,
        g.x + g.residual,
    ),
    "jn.l2_normalize(x)": lambda g: unit(g.x),
    "jn.batch_norm(x, stats, scale, bias, momentum=0.9, unbiased=True)[0]": lambda g: (
        standardized(g.x, BATCH, 1e-5) * g.scale + g.bias
    ),
    'jn.batch_norm(x, stats, scale, bias, epsilon=1e-3, activation="silu")[0]': lambda g: silu(
        standardized(g.x, BATCH, 1e-3) * g.scale + g.bias
    ),
    "jn.layer_norm(x, scale, bias)": lambda g: standardized(g.x) * g.scale + g.bias,
    'jn.qk_norm(q, k, d_scale, d_scale, kind="layer")': lambda g: of_heads(
        lambda x: standardized(x) * g.d_scale
    ),
    'jn.qk_norm(q, k, temperatures, kind="l2", feature_axes=-2)': lambda g: (
        unit(g.q) * g.temperatures[:, None],
        unit(g.k),
    ),
    "jn.layer_scale(x, scale)": lambda g: g.x * g.scale,
    "jn.global_response_norm(x, scale, bias)": lambda g: global_response(g.x, g.scale, g.bias),
    'jn.group_norm(x, scale, bias, num_groups=2, epsilon=1e-5, activation="relu")': lambda g: (
        np.maximum(of_groups(g.x) * g.scale + g.bias, 0)
    ),
    "jn.weight_standardization(kernel, epsilon=1e-8)": lambda g: weights(g.kernel, 1e-8),
    "jn.scaled_weight_standardization(kernel, gain)": lambda g: scaled_weights(g.kernel, g.gain),
    'jn.group_norm(x, scale, bias, num_groups=2, epsilon=1e-5, activation="silu")': lambda g: silu(
        of_groups(g.x) * g.scale + g.bias
    ),
    "jn.ada_group_norm(x, c_scale, c_shift, num_groups=2)": lambda g: (
        of_groups(g.x) * (1 + all_positions(g.c_scale)) + all_positions(g.c_shift)
    ),
    "jn.ada_layer_norm(x, c_scale, c_shift)": lambda g: (
        standardized(g.x) * (1 + all_positions(g.c_scale)) + all_positions(g.c_shift)
    ),
    "jn.ada_layer_norm(x, table[1] + c_scale, table[0] + c_shift)": lambda g: (
        standardized(g.x) * (1 + all_positions(g.table[1] + g.c_scale))
        + all_positions(g.table[0] + g.c_shift)
    ),
    "jn.ada_rms_norm(x, c_scale)": lambda g: rms(g.x) * (1 + all_positions(g.c_scale)),
    "jn.pixel_norm(x, epsilon=0.0)": lambda g: (
        g.x / np.linalg.norm(g.x, axis=-1, keepdims=True) * C**0.5
    ),
    "jn.magnitude_preserving(kernel)": lambda g: magnitude_preserving(g.kernel),
    "jn.modulate(jn.instance_norm(x, epsilon=1e-5), c_scale, c_shift, scale_offset=1.0)": lambda g: (
        standardized(g.x, (1, 2), 1e-5) * (1 + all_positions(g.c_scale)) + all_positions(g.c_shift)
    ),
    "jn.pixel_norm(x, epsilon=1e-8)": lambda g: rms(g.x, epsilon=1e-8),
    "jn.modulate(jn.batch_norm(x, stats)[0], c_scale, c_shift, scale_offset=1.0)": lambda g: (
        standardized(g.x, BATCH, 1e-5) * (1 + all_positions(g.c_scale)) + all_positions(g.c_shift)
    ),
    "jn.modulate(jn.instance_norm(x), pixel_scale, pixel_shift, scale_offset=1.0)": lambda g: (
        standardized(g.x, (1, 2)) * (1 + g.pixel_scale) + g.pixel_shift
    ),
    "jn.input_norm(x, input_stats, max_abs=10.0)[0]": lambda g: input_norm(g.x),
    'jn.batch_renorm(x, stats, scale, bias, form="crossq")[0]': lambda g: (
        batch_renorm(g.x) * g.scale + g.bias
    ),
    "jn.layer_scale(x, scale, multiplier=0.5)": lambda g: g.x * g.scale * 0.5,
    "jn.sim_norm(x)": lambda g: grouped(g.x, softmax, 8),
}


def test_every_line_has_a_formula() -> None:
    """No line of the page goes untested, and no formula stands for nothing."""
    assert set(LINES) == set(FORMULAS)
    assert len({row[:2] for row in ROWS}) == len(ROWS)


@pytest.mark.usefixtures("users_promotion")
def test_lines() -> None:
    """Each line gives what the model's formula gives in float64."""
    arrays = {n: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), a) for n, a in GIVEN.items()}

    @jax.jit
    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        return {line: eval(line, {"jn": jn, **arrays}) for line in FORMULAS}

    class G:
        """The arrays in float64, by name."""

    g = G()
    vars(g).update(GIVEN)
    for line, found in run(arrays | {"input_stats": GIVEN["input_stats"]}).items():
        expected = FORMULAS[line](g)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=line)
