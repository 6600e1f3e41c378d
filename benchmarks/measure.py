"""Times programs in turns, and reads the compiler's counts."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax._src.ad_checkpoint import saved_residuals

from benchmarks.cases import Data, Phase
from benchmarks.contestants import Forward

SAMPLE = 0.015  # target duration of a sample in seconds


@dataclass(frozen=True)
class Program:
    """A compiled computation with its arguments."""

    run: Callable[[int], Any]  # runs this many times, waits for all, and returns the last result
    results: Callable[[], list[np.ndarray]] = list
    counted: dict[str, float] = field(default_factory=dict)


def repeated(call: Callable[[], Any]) -> Callable[[int], Any]:
    """Returns `Program.run` for a call of JAX.

    On a CPU, each call ends before the next begins, as in a loop with one step in flight. On other devices,
    the calls are queued, so that the device is measured and not the wait for it.
    """
    each = jax.default_backend() == "cpu"

    def run(times: int) -> Any:
        result = None
        for _ in range(times):
            result = call()
            if each:
                jax.block_until_ready(result)
        return jax.block_until_ready(result)

    return run


def compiled(forward: Forward, phase: Phase, data: Data) -> jax.stages.Compiled:
    """Compiles one program for y (and dx, dscale, dbias) and the updated running statistics."""

    def one_way(x: Any, parameters: Any, stats: Any, dy: Any) -> Any:
        y, stats = forward(x, parameters, stats)
        return [y], stats

    def both(x: Any, parameters: Any, stats: Any, dy: Any) -> Any:
        y, pull, stats = jax.vjp(lambda x, p: forward(x, p, stats), x, parameters, has_aux=True)
        dx, gradients = pull(dy)
        return [y, dx, *gradients], stats

    return jax.jit(both if phase == "both" else one_way).lower(*data).compile()


def in_jax(forward: Forward, phase: Phase, data: Data) -> Program:
    """Returns that program with its arguments on the device, and its counts."""
    arguments = jax.device_put(tuple(data))
    program = compiled(forward, phase, data)
    size = data.x.nbytes
    counted = {name: n / size for name, n in compiler_counts(program).items()}
    if phase == "both":
        x, parameters, stats, _ = arguments
        kept = saved_for_backward(lambda x, p: forward(x, p, stats)[0], x, parameters)
        counted["saved"] = kept / size
    return Program(
        repeated(lambda: program(*arguments)),
        lambda: [np.asarray(a, np.float64) for a in program(*arguments)[0]],
        counted,
    )


def compiler_counts(compiled: Any) -> dict[str, float]:
    """Bytes that a program reads and writes, and bytes of its temporaries."""
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    counts = {"bytes_accessed": cost.get("bytes accessed")}
    counts["temporaries"] = memory and memory.temp_size_in_bytes
    return {name: float(n) for name, n in counts.items() if n is not None}


def saved_for_backward(function: Callable[..., jax.Array], *arguments: Any) -> int:
    """Bytes of the residuals, x included, before a compiler may choose to rematerialize them."""
    residuals: list[tuple[Any, str]] = saved_residuals(function, *arguments)
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval, _ in residuals)


def copy_of(x: np.ndarray) -> Program:
    """Returns a program that reads and writes as many bytes as x has, with negligible arithmetic."""
    words = jax.device_put(np.zeros(math.ceil(x.nbytes / 4), np.float32))
    compiled = jax.jit(lambda a: -a).lower(words).compile()
    return Program(repeated(lambda: compiled(words)))


def seconds(program: Program, calls: int) -> float:
    """The mean time of a call over `calls` calls."""
    start = time.perf_counter()
    program.run(calls)
    return (time.perf_counter() - start) / calls


def in_turns(programs: Mapping[str, Program], rounds: int) -> dict[str, np.ndarray]:
    """Returns the seconds per call of each program in each round.

    The order is reversed every round (A B B A), so that other load on the machine and whatever the previous
    program leaves behind affect all programs equally.
    """
    calls = {}
    for name, program in programs.items():
        program.run(1)
        calls[name] = max(3, math.ceil(SAMPLE / seconds(program, 3)))
    times: dict[str, list[float]] = {name: [] for name in programs}
    order = list(programs)
    for _ in range(rounds):
        for name in order:
            programs[name].run(1)
            times[name].append(seconds(programs[name], calls[name]))
        order.reverse()
    return {name: np.asarray(t) for name, t in times.items()}


def quartiles(values: Sequence[float] | np.ndarray) -> list[float]:
    """Returns the lower quartile, the median and the upper quartile."""
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]
