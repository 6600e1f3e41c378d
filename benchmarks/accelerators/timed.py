"""How long programs take on a device that is there, ours and Flax's in turns."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from .programs import LIBRARIES, Library, Program

ROUNDS = 20


def seconds(program: Program, rounds: int = ROUNDS) -> dict[Library, float]:
    """The median time of each library's program on the first device."""
    runs: dict[Library, Any] = {library: _prepared(program, library) for library in LIBRARIES}
    taken: dict[Library, list[float]] = {library: [] for library in LIBRARIES}
    for _ in range(rounds):
        for library, (step, arguments) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            taken[library].append(time.perf_counter() - start)
    return {library: statistics.median(times) for library, times in taken.items()}


def _prepared(program: Program, library: Library) -> tuple[Any, list[Any]]:
    """The compiled program, and what it is run with: statistics of zero, all else normal."""
    f, (params, state, *others) = program.of(library)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves((params, others)))))

    def drawn(a: Any) -> jax.Array:
        return jax.random.normal(next(keys), a.shape, a.dtype)

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state)
    arguments = [jax.tree.map(drawn, params), zeros, *jax.tree.map(drawn, others)]
    step = jax.jit(f)
    jax.block_until_ready(step(*arguments))
    return step, arguments
