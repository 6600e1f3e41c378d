"""Measures what the tools cost on a ResNet-18: the first call, the next ones, and their memory.

    python -m benchmarks.tool_costs [--size 64] [--write]

Each figure is compared with a compiled evaluation and a compiled training step of the same model on the same
images. In images of 64 × 64 pixels, kernels take most of the memory; in larger ones, activations do.
Memory is that of the model's variables and the growth of the process during a call, at its largest. It is
read from Linux's /proc.
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
    """Images in the batch."""
    size: int = 128
    """Height and width of an image."""
    calls: int = 5
    """Calls after the first, of which the median is taken."""
    write: bool = False
    """Store the figures in benchmarks/results."""


def programs(images: int, size: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """Evaluation, a training step, and each tool; and the bytes of the variables."""
    model: Any = ResNet18()
    x = np.random.default_rng(0).normal(size=(images, size, size, 3)).astype(np.float32)
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
    calls = {
        "evaluation": lambda: evaluation(variables, x),
        "training step": lambda: step(variables, x),
        "`examine`": lambda: tools.examine(model, x, **given),
        "`recalibrate`, one pass": lambda: tools.recalibrate(model, [x], **given),
        "`fold`": lambda: tools.fold(model, x, **given).variables,
    }
    return calls, sum(leaf.nbytes for leaf in jax.tree.leaves(variables))


def measured(options: Options) -> list[dict[str, Any]]:
    """A row for each program."""
    rows = []
    calls, held = programs(options.images, options.size)
    for name, call in calls.items():
        first = seconds(call)
        memory = held + max(growth(call) for _ in range(options.calls))
        later = float(np.median([seconds(call) for _ in range(options.calls)]))
        rows.append({"name": name, "first": first, "later": later, "memory": memory})
    return rows


def seconds(call: Callable[[], Any]) -> float:
    """The time that a call takes."""
    began = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(call()))
    return time.perf_counter() - began


def growth(call: Callable[[], Any]) -> int:
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
            f"{row['later'] / step['later']:.1f}",
            f"{row['memory'] / 2**20:.0f} MiB",
            f"{row['memory'] / evaluation['memory']:.1f}",
        ]
        for row in found["rows"]
    ]
    header = ["", "first call", "later calls", "/ training step", "memory", "/ evaluation"]
    return f"{found['machine']}; {found['versions']}\n\n{markdown(header, lines)}"


def main(options: Options) -> None:
    """Measures, prints the table, and stores the figures if requested."""
    found = {
        "machine": machine_used(),
        "versions": versions_used(),
        "images": options.images,
        "size": options.size,
        "rows": measured(options),
    }
    print(table(found))
    if options.write:
        name = f"tool_costs-{options.size}-{jax.default_backend()}-jax{jax.__version__}.json"
        (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.tool_costs", description=__doc__))
