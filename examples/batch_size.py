"""Trains with batch norm over 64 images down to 2, and with group norm: where does batch norm fail?

    python -m examples.batch_size

Trains a narrower version of the CIFAR-10 example's CNN, each time on the same images, in two ways:

- 64 images in each step, spread over devices that normalize N images each. Only the statistics differ: the
  number of steps and the learning rate are the same. (A single device simulates all: `virtual_batch_size` is
  the number of images per device.) Group norm takes no statistics over images, so one run covers all N.
- N images in each step, on one device. The learning rate is proportional to N.

Batch norm is evaluated on the same held-out images with its running statistics, with statistics re-estimated
on the training images, and with statistics of N images, as in training.
"""

import statistics
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxnorm import linen as jnl, tools

from . import cifar10, data, measure, report
from .experiment import OnImages, Rows, main, mean_and_range
from .training import accuracy, evaluated, fit, network_of

SPREAD, SINGLE = "64 images in a step, N on each device", "N images in a step, one device"
STEP = 64  # images in a step that is spread over devices


@dataclass(frozen=True, kw_only=True)
class BatchSize(OnImages):
    """The batch-size experiment."""

    name: ClassVar = "batch_size"

    sizes: tuple[int, ...] = (2, 4, 16, 64)
    """Numbers of images to normalize together: divisors of 64."""
    norms: tuple[jnl.NormName, ...] = ("batch", "group")
    """Norms to compare."""
    images: int = 7_680
    """Training images, each seen once."""
    lr: float = 0.05
    """Learning rate for steps of 64 images."""
    seeds: int = 3
    """Number of repetitions, each from a different initialization."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"CNN on {self.images:,} images of {dataset}, each seen once"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the held-out accuracies of all seeds, by way of training, line of the plot and size."""
        dataset = dataset.first(self.images, 4096)

        @cache
        def shares(norm: Any, step: int, together: int, seed: int) -> dict[str, float]:
            return trained(self, norm, step, together, seed, dataset)

        found: dict[str, Any] = {SPREAD: {}, SINGLE: {}}
        for norm in self.norms:
            for size in self.sizes:
                for way, step in ((SPREAD, STEP), (SINGLE, size)):
                    # To other norms, it makes no difference which images are on the same device.
                    together = size if norm == "batch" else step
                    for seed in range(self.seeds):
                        for line, share in shares(norm, step, together, seed).items():
                            found[way].setdefault(line, {}).setdefault(str(size), []).append(share)
        return found

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table of accuracy by size for each way of training."""
        return {
            way: [
                ["held-out accuracy for N =", *next(iter(lines.values()))],
                *([line, *map(mean_and_range, sizes.values())] for line, sizes in lines.items()),
            ]
            for way, lines in found.items()
        }

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws batch_size.png."""
        draw(found, title, folder / "batch_size.png")


def trained(
    options: BatchSize, norm: Any, step: int, together: int, seed: int, dataset: data.Dataset
) -> dict[str, float]:
    """Returns held-out accuracy for each way to evaluate a network trained with this norm."""
    settings = cifar10.Settings(
        norm=norm,
        widths=(32, 32, 64),
        epochs=1,
        batch_size=step,
        lr=options.lr * step / STEP,
        # The running average spans the same number of images at every batch size.
        momentum=0.9 ** (step / STEP),
    )
    settings = cifar10.completed(settings, dataset)
    classes = len(dataset.classes)
    parts = {} if together == step else {"virtual_batch_size": together}
    note = f"{norm}, {step} images in a step, {together} together, seed {seed}"
    seeded = cifar10.replace(settings, seed=seed)
    state = fit(network_of(settings, classes, **parts), seeded, dataset, note=note)
    variables = jax.device_get(state.variables)
    model = network_of(settings, classes)
    if norm != "batch":
        return {norm: accuracy(model, variables, dataset)}
    chosen = dataset.train_images[:4096]
    batches = [chosen[i : i + 256] for i in range(0, len(chosen), 256)]
    again = tools.recalibrate(model, batches, variables=variables, run=evaluated)
    held_out = dataset.test_images, dataset.test_labels
    return {
        "batch, running statistics": accuracy(model, variables, dataset),
        "batch, re-estimated statistics": accuracy(model, again, dataset),
        "batch, statistics of N images": measure.accuracy_with_batch_statistics(
            model, variables, *held_out, together
        ),
    }


# --- the plot --------------------------------------------------------------------------------------


def draw(found: dict[str, dict[str, dict[str, list[float]]]], title: str, path: Path) -> None:
    """Draws a panel for each way of training: means over seeds, with bands for the range."""
    figure, panels = report.new_panels(title, [f"{way}: held-out accuracy" for way in found])
    styles = [(report.BLUE, "o-"), ("#56B4E9", "^--"), (report.ORANGE, "v:"), ("black", "s-")]
    for axes, lines in zip(panels, found.values(), strict=True):
        axes.sharey(panels[0])
        for (name, shares), (colour, style) in zip(lines.items(), styles, strict=False):
            sizes = [int(size) for size in shares]
            means = [statistics.mean(of_seeds) for of_seeds in shares.values()]
            axes.plot(sizes, means, style, color=colour, label=name)
            lows, highs = zip(*((min(s), max(s)) for s in shares.values()), strict=True)
            axes.fill_between(sizes, lows, highs, color=colour, alpha=0.12, lw=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("N, the images that batch norm normalizes together")
        report.percents(axes.yaxis)
    panels[0].legend(frameon=False, loc="lower right")
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(BatchSize, __doc__))
