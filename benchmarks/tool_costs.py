"""Measures what the tools cost on a ResNet-18: the first call, the next ones, and their memory.

    python -m benchmarks.tool_costs [--write]

Each figure is compared with a compiled evaluation and a compiled training step of the same model on the same
images. The last convolutions see 4 × 4 pixels, so that their kernels do not dominate the memory.
Memory is the largest resident size during a call, less the size before it; it is read from Linux's /proc.
"""

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro

from benchmarks.resnet18 import ResNet18
from benchmarks.results import RESULTS
from benchmarks.tables import markdown
from examples.environment import machine_used, versions_used
from jaxnorm import tools


@dataclass(frozen=True)
class Options:
    """Measures what the tools cost on a ResNet-18."""

    images: int = 16
    """Images in the batch, of 128 × 128 pixels."""
    calls: int = 5
    """Calls after the first, of which the median is taken."""
    write: bool = False
    """Store the figures in benchmarks/results."""


def programs(images: int) -> dict[str, Callable[[], Any]]:
    """Evaluation, a training step, and each tool."""
    model: Any = ResNet18()
    x = np.random.default_rng(0).normal(size=(images, 128, 128, 3)).astype(np.float32)
    labels = np.arange(images) % 1000
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, False)
    evaluation = jax.jit(lambda variables, x: model.apply(variables, x, train=False))

    @jax.jit
    def step(variables: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            state = {**variables, "params": params}
            logits, updated = model.apply(state, x, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
        return {"params": moved, **updated}

    def run(model: Any, x: Any) -> Any:
        return model(x, train=False)

    given = {"variables": variables, "run": run}
    return {
        "evaluation": lambda: evaluation(variables, x),
        "training step": lambda: step(variables, x),
        "`examine`": lambda: tools.examine(model, x, **given),
        "`recalibrate`, one pass": lambda: tools.recalibrate(model, [x], **given),
        "`fold`": lambda: tools.fold(model, x, **given).variables,
    }


def measured(options: Options) -> list[dict[str, Any]]:
    """A row for each program."""
    rows = []
    for name, call in programs(options.images).items():
        first = seconds(call)
        memory = peak(call)
        rest = [seconds(call) for _ in range(options.calls)]
        rows.append({"name": name, "first": first, "later": float(np.median(rest)), "peak": memory})
    return rows


def seconds(call: Callable[[], Any]) -> float:
    """The time that a call takes."""
    began = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(call()))
    return time.perf_counter() - began


def peak(call: Callable[[], Any]) -> int:
    """Bytes by which the process grows during a call, at most."""
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
    jax.block_until_ready(jax.tree.leaves(call()))
    return resident("VmHWM") - before


def resident(what: str) -> int:
    """A size of this process, in bytes."""
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if what in s)
    return 1024 * int(line.split()[1])


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    evaluation, step = found["rows"][:2]
    lines = [
        [
            row["name"],
            f"{row['first']:.1f} s",
            f"{row['later']:.2f} s",
            f"{row['later'] / evaluation['later']:.1f}",
            f"{row['later'] / step['later']:.1f}",
            f"{row['peak'] / 2**20:.0f} MiB",
        ]
        for row in found["rows"]
    ]
    header = ["", "first call", "later calls", "/ evaluation", "/ training step", "memory"]
    return f"{found['machine']}; {found['versions']}\n\n{markdown(header, lines)}"


def main(options: Options) -> None:
    """Measures, prints the table, and stores the figures if requested."""
    found = {
        "machine": machine_used(),
        "versions": versions_used(),
        "images": options.images,
        "rows": measured(options),
    }
    print(table(found))
    if options.write:
        path = RESULTS / f"tool_costs-{jax.default_backend()}-jax{jax.__version__}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.tool_costs", description=__doc__))
