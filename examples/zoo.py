"""Compares all registered norms in the same small CNN: accuracy, time per step, memory.

    python -m examples.zoo          # or: make zoo

Trains a narrower version of the CIFAR-10 example's CNN with each norm on the same images in the same order,
once per seed. The learning rate is the same for all norms and tuned for none. So a low accuracy means that a
norm is not a good replacement for batch norm, not that it is bad in the setting it was made for.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import jax
import numpy as np
from rich.progress import track

from jaxnorm import linen as jnl

from . import cifar10, data, report
from .experiment import OnImages, Rows, main, mean_and_range
from .training import accuracy, begun, compiled, network_of, shuffled, step_count


@dataclass(frozen=True, kw_only=True)
class Zoo(OnImages):
    """The comparison of all norms."""

    name: ClassVar = "zoo"

    norms: tuple[jnl.NormName, ...] = get_args(jnl.NormName)
    """Norms to compare."""
    images: int = 9_600
    """Training images, each seen once."""
    batch_size: int = 64
    """Images per training batch."""
    lr: float = 0.03
    """Learning rate, the same for all norms."""
    seeds: int = 3
    """Number of training runs per norm, each with a different seed."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"CNN on {self.images:,} images of {dataset}, each seen once"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the accuracy of each norm, and the time and memory of its training step."""
        dataset = dataset.first(self.images, 4096)
        return {
            norm: trained(norm, self, dataset)
            for norm in track(self.norms, "every norm", transient=True)
        }

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table with a row for each norm, the most accurate first."""
        header = ["`--norm`", "held-out accuracy", "milliseconds a step", "temporary memory, MB"]
        lines = [
            [
                norm,
                mean_and_range(run["accuracy"]),
                f"{run['milliseconds']:.1f}" if run["milliseconds"] else "",
                f"{run['megabytes']:.1f}",
            ]
            for norm, run in in_order(found)
        ]
        return {"Every norm instead of batch norm": [header, *lines]}

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws zoo.png."""
        draw(found, title, folder / "zoo.png")


def trained(norm: jnl.NormName, options: Zoo, dataset: data.Dataset) -> dict[str, Any]:
    """Returns the accuracies, the median time of a step, and its temporary memory."""
    settings = cifar10.Settings(
        norm=norm,
        widths=(32, 32, 64),
        depth=1,
        epochs=1,
        lr=options.lr,
        batch_size=options.batch_size,
    )
    settings = cifar10.completed(settings, dataset)
    model = network_of(settings, len(dataset.classes))
    steps, step, megabytes = step_count(settings, dataset), None, 0.0
    accuracies, seconds = [], []
    for seed in range(options.seeds):
        seeded = cifar10.replace(settings, seed=seed)
        state, train_step = begun(model, seeded, dataset)
        for batch in shuffled(dataset, seeded, steps):
            if step is None:
                step = train_step.lower(state, seed, *batch).compile()  # type: ignore[attr-defined]
                megabytes = step.memory_analysis().temp_size_in_bytes / 1e6
            start = time.perf_counter()
            state = jax.block_until_ready(step(state, np.int32(seed), *batch))
            seconds.append(time.perf_counter() - start)
        accuracies.append(accuracy(model, state.variables, dataset))
    compiled.cache_clear()  # the programs of all norms would add up
    return {
        "accuracy": accuracies,
        "milliseconds": 1000 * statistics.median(seconds),
        "megabytes": megabytes,
    }


def in_order(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Sorts the results, the most accurate norm first. A norm added later has no time (None)."""
    return sorted(found.items(), key=lambda item: -statistics.mean(item[1]["accuracy"]))


def draw(found: dict[str, Any], title: str, path: Path) -> None:
    """Draws accuracy and time side by side, with a point for each seed."""
    figure, (left, right) = report.new_panels(title, ["Accuracy (points: seeds)", "Time of a step"])
    runs = in_order(found)[::-1]
    names = [name.replace("_", " ") for name, _ in runs]
    rows = range(len(names))
    for axes in (left, right):
        axes.grid(visible=False)
        axes.tick_params(axis="y", labelsize=7)
    left.barh(names, [statistics.mean(run["accuracy"]) for _, run in runs], color=report.BLUE)
    for row, (_, run) in zip(rows, runs, strict=True):
        left.plot(run["accuracy"], [row] * len(run["accuracy"]), "o", color=report.ORANGE, ms=3)
    report.percents(left.xaxis)
    left.set_xlabel("Held-out accuracy")
    right.barh(names, [run["milliseconds"] or 0 for _, run in runs], color=report.GREY)
    right.set_xlabel("Milliseconds")
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(Zoo, __doc__))
