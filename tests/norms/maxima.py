"""Compares gradients of maxima of norms, compiled as users compile them, with uncompiled ones.

    python -m tests.norms.maxima [NORM ...]

This is a separate program because `make test` turns off LLVM's optimizations, and the fault that it looks
for depends on them.
"""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm as jn

RNG = np.random.default_rng(0)
CASES = (  # all failed in the past
    (jnp.float32, (12, 2, 2, 16)),
    (jnp.float32, (84, 4, 4, 8)),
    (jnp.float64, (84, 4, 4, 8)),
)
ENDS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu, max": lambda y: jax.nn.relu(y).max((1, 2)),
    "max": lambda y: y.max((1, 2)),
    "pairs": lambda y: jnp.maximum(y[:, :, :-1], y[:, :, 1:]),
}


def fresh(x: Any) -> jn.RunningStats:
    """Initial running statistics."""
    return jn.init_running_stats(x.shape[-1])


def modulation(x: Any, s: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A scale and a shift for each example."""
    examples = jnp.arange(len(x), dtype=s.dtype)[:, None]
    return jnp.sin(examples) * s, jnp.cos(examples) * b


NORMS: dict[str, Callable[..., jax.Array]] = {
    "batch": lambda x, s, b: jn.batch_norm(x, fresh(x), s, b)[0],
    "batch, bare": lambda x, s, b: jn.batch_norm(x, fresh(x))[0],
    "virtual": lambda x, s, b: jn.batch_norm(x, fresh(x), s, b, virtual_batch_size=len(x) // 2)[0],
    "inference": lambda x, s, b: jn.batch_norm_inference(x, jn.RunningStats(b, b**2 + 1), s, b),
    "layer": lambda x, s, b: jn.layer_norm(x, s, b),
    "rms": lambda x, s, b: jn.rms_norm(x, s),
    "group": lambda x, s, b: jn.group_norm(x, s, b, num_groups=2),
    "instance": lambda x, s, b: jn.instance_norm(x, s, b),
    "act": lambda x, s, b: jn.act_norm(x, s, b)[0],
    "ada layer": lambda x, s, b: jn.ada_layer_norm(x, *modulation(x, s, b)),
    "adain": lambda x, s, b: jn.adain(x, x[::-1] * s + b),
    "adapted": lambda x, s, b: jn.batch_norm_adapted(x, fresh(x), s, b, running_share=0.5),
    "batch renorm": lambda x, s, b: jn.batch_renorm(x, fresh(x), s, b)[0],
    "derf": lambda x, s, b: jn.derf(x, 0.3, 0.1, s, b),
    "dynamic tanh": lambda x, s, b: jn.dynamic_tanh(x, 0.3, s, b),
    "evo b0": lambda x, s, b: jn.evo_norm_b0(x, fresh(x), s, s, b)[0],
    "evo b1": lambda x, s, b: jn.evo_norm_b1(x, fresh(x), s, b)[0],
    "evo b2": lambda x, s, b: jn.evo_norm_b2(x, fresh(x), s, b)[0],
    "evo s0": lambda x, s, b: jn.evo_norm_s0(x, s, s, b, num_groups=2),
    "evo s1": lambda x, s, b: jn.evo_norm_s1(x, s, b, num_groups=2),
    "evo s2": lambda x, s, b: jn.evo_norm_s2(x, s, b, num_groups=2),
    "filter response": lambda x, s, b: jn.filter_response_norm(x, s, b),
    "filter response, tlu": lambda x, s, b: jn.filter_response_norm(x, s, b, b),
    "global response": lambda x, s, b: jn.global_response_norm(x, s, b),
    "input": lambda x, s, b: jn.input_norm(x, jn.init_input_norm(x.shape[-1]))[0] * s + b,
    "mean only": lambda x, s, b: jn.mean_only_batch_norm(x, fresh(x), b)[0],
    "modulate": lambda x, s, b: jn.modulate(x, *modulation(x, s, b)),
    "scale": lambda x, s, b: jn.scale_norm(x, s[0]),
    "sim": lambda x, s, b: jn.sim_norm(x, simplex_size=2) * s + b,
    "switchable": lambda x, s, b: jn.switchable_norm(x, fresh(x), s[:3], b[:3], s, b)[0],
    "whitening": lambda x, s, b: jn.iterative_whitening(x, jn.init_whitening(x.shape[-1]), s, b)[0],
}


def apart(norm: Callable[..., jax.Array], end: Any, dtype: Any, shape: Any) -> float:
    """The difference between the compiled and the uncompiled gradient, relative to its largest entry.

    Parameters are drawn in float32 and converted to the ``dtype`` of x.
    """
    x = jnp.asarray(RNG.normal(3, 2, size=shape), dtype)
    scale, bias = (jnp.asarray(RNG.normal(mean, 0.5, shape[-1]), jnp.float32) for mean in (1, 0))
    w = jnp.asarray(RNG.normal(size=jax.eval_shape(end, x).shape), dtype)

    def loss(x: Any, scale: Any, bias: Any) -> Any:
        return (end(norm(x, scale, bias)) * w).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    pairs = zip(gradient(x, scale, bias), jax.jit(gradient)(x, scale, bias), strict=True)
    return max(float(jnp.abs(a - b).max() / (jnp.abs(a).max() + 1e-9)) for a, b in pairs)


def main(names: list[str]) -> int:
    """Prints each difference, for all norms or the named ones, and returns how many there are."""
    wrong = 0
    for (dtype, shape), name, end in itertools.product(CASES, names or NORMS, ENDS):
        with jax.enable_x64(dtype == jnp.float64):
            found = apart(NORMS[name], ENDS[end], dtype, shape)
        if not found < 1e-3:
            wrong += 1
            print(f"{name}, {end}, {jnp.dtype(dtype).name}: {found:.1e}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
