"""Timing in turns, and what the compiler counts."""

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

SAMPLE = 0.015  # seconds that a sample should last


@dataclass(frozen=True)
class Program:
    """A computation, compiled, with its arguments."""

    run: Callable[[int], Any]  # so many times, to their end; gives the last result
    results: Callable[[], list[np.ndarray]] = list
    counted: dict[str, float] = field(default_factory=dict)


def repeated(call: Callable[[], Any]) -> Callable[[int], Any]:
    """`Program.run` of a call of jax.

    On a CPU each call ends before the next begins, as in a loop that has one step at work; on other devices
    they queue, so that what is measured is the device and not the wait for it.
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
    """One program for y (and dx, dscale, dbias) and the running statistics after it."""

    def one_way(x: Any, parameters: Any, stats: Any, dy: Any) -> Any:
        y, stats = forward(x, parameters, stats)
        return [y], stats

    def both(x: Any, parameters: Any, stats: Any, dy: Any) -> Any:
        y, pull, stats = jax.vjp(lambda x, p: forward(x, p, stats), x, parameters, has_aux=True)
        dx, gradients = pull(dy)
        return [y, dx, *gradients], stats

    return jax.jit(both if phase == "both" else one_way).lower(*data).compile()


def in_jax(forward: Forward, phase: Phase, data: Data) -> Program:
    """That program, its arguments in place, and what is counted of it."""
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
    """Bytes that a program reads and writes, and those of its temporaries."""
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    counts = {"bytes_accessed": cost.get("bytes accessed")}
    counts["temporaries"] = memory and memory.temp_size_in_bytes
    return {name: float(n) for name, n in counts.items() if n is not None}


def saved_for_backward(function: Callable[..., jax.Array], *arguments: Any) -> int:
    """Bytes that differentiation keeps, x included, before a compiler may choose to recompute."""
    residuals: list[tuple[Any, str]] = saved_residuals(function, *arguments)
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval, _ in residuals)


def copy_of(x: np.ndarray) -> Program:
    """Reads as many bytes as x has, and writes as many; as float32, so that the arithmetic is nothing."""
    words = jax.device_put(np.zeros(math.ceil(x.nbytes / 4), np.float32))
    compiled = jax.jit(lambda a: -a).lower(words).compile()
    return Program(repeated(lambda: compiled(words)))


def seconds(program: Program, calls: int) -> float:
    """Of one call, the mean of so many."""
    start = time.perf_counter()
    program.run(calls)
    return (time.perf_counter() - start) / calls


def in_turns(programs: Mapping[str, Program], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a call in each round.

    The order is reversed every round (A B B A): what else the machine does, and what the one before left
    behind, hits all alike.
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
    """The lower one, the median, the upper one."""
    return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]
