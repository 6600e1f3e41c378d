"""Compares norms at batch sizes from 2 to 256 on the same number of images: where does batch norm fail?

    python -m examples.batch_size

Trains a narrower version of the CIFAR-10 example's CNN on 7,680 images with every norm and batch size; the
learning rate scales with the batch size. Then trains data-parallel on 8 devices, each with a batch of that
size: once with separate statistics per device, and once with synced statistics, which cover 8 times as many
images. (A single device simulates both: `virtual_batch_size` is the batch size per device.)

Batch norm is evaluated on the same held-out images with its running statistics, with statistics
re-estimated on the training images, and with the statistics of batches as small as in training.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxnorm import linen as jnl, tools

from . import cifar10, data, measure, report
from .experiment import OnImages, Rows, main, mean_and_range
from .training import accuracy, evaluated, fit, network_of

DEVICES = 8
LARGEST = 256  # images in a batch over all devices


@dataclass(frozen=True, kw_only=True)
class BatchSize(OnImages):
    """The batch-size experiment."""

    name: ClassVar = "batch_size"

    sizes: tuple[int, ...] = (2, 8, 32, 256)
    """Batch sizes to compare."""
    norms: tuple[jnl.NormName, ...] = ("batch", "group", "layer", "instance")
    """Norms to compare."""
    images: int = 7_680
    """Training images, each seen once."""
    lr: float = 0.05
    """Learning rate for batches of 64 and more; it is scaled down in proportion for smaller batches."""
    seeds: int = 3
    """Number of repetitions, each from a different initialization."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"CNN on {self.images:,} images of {dataset}, each seen once"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the held-out accuracies of all seeds, by norm and evaluation method, and by batch size."""
        dataset = dataset.first(self.images, 4096)
        runs = [(norm, size, 1) for norm in self.norms for size in self.sizes]
        runs += [("batch", size, DEVICES) for size in self.sizes if size * DEVICES <= LARGEST]
        found: dict[str, dict[str, list[float]]] = {}
        for norm, size, devices in runs:
            for seed in range(self.seeds):
                for line, share in trained(self, norm, size, devices, seed, dataset).items():
                    found.setdefault(line, {}).setdefault(str(size), []).append(share)
        return found

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table of accuracy by batch size."""
        sizes = list(next(iter(found.values())))
        lines = (
            [name, *(mean_and_range(shares.get(size, [])) for size in sizes)]
            for name, shares in found.items()
        )
        return {"Held-out accuracy by batch size": [["norm", *sizes], *lines]}

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws batch_size.png."""
        draw(found, title, folder / "batch_size.png")


def trained(
    options: BatchSize, norm: Any, size: int, devices: int, seed: int, dataset: data.Dataset
) -> dict[str, float]:
    """Returns held-out accuracy for each way to train and to evaluate this norm."""
    if devices > 1:
        lines = {"batch, 8 devices, synced": None, "batch, 8 devices, not synced": size}
        return {
            line: accuracy(*fitted(options, norm, size * devices, seed, dataset, own), dataset)
            for line, own in lines.items()
        }
    model, variables = fitted(options, norm, size, seed, dataset)
    if norm != "batch":
        return {norm: accuracy(model, variables, dataset)}
    chosen = dataset.train_images[:4096]
    batches = [chosen[i : i + 256] for i in range(0, len(chosen), 256)]
    again = tools.recalibrate(model, batches, variables=variables, run=evaluated)
    held_out = dataset.test_images, dataset.test_labels
    return {
        "batch, running statistics": accuracy(model, variables, dataset),
        "batch, re-estimated statistics": accuracy(model, again, dataset),
        "batch, statistics of such batches": measure.accuracy_with_batch_statistics(
            model, variables, *held_out, size
        ),
    }


def fitted(
    options: BatchSize,
    norm: Any,
    size: int,
    seed: int,
    dataset: data.Dataset,
    virtual: int | None = None,
) -> tuple[Any, Any]:
    """Trains a network; returns it and its trained variables."""
    settings = cifar10.Settings(
        norm=norm,
        widths=(32, 32, 64),
        epochs=1,
        batch_size=size,
        lr=options.lr * min(size, 64) / 64,
        # The running average spans the same number of images at every batch size.
        momentum=0.9 ** (min(size, 64) / 64),
    )
    settings = cifar10.completed(settings, dataset)
    of_norm = {} if virtual is None else {"virtual_batch_size": virtual}
    model = network_of(settings, len(dataset.classes), **of_norm)
    note = f"{norm}, batches of {size}, seed {seed}"
    state = fit(model, cifar10.replace(settings, seed=seed), dataset, note=note)
    return model, jax.device_get(state.variables)


# --- the plot --------------------------------------------------------------------------------------


def draw(found: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    """Draws a line for each norm and evaluation method: the mean over seeds, with a band for the range."""
    figure, axes = report.new_figure(title, "Held-out accuracy by the batch size of training")
    colours = [
        report.BLUE,
        "#56B4E9",
        report.ORANGE,
        "black",
        report.GREY,
        "#009E73",
        "#CC79A7",
        "#999900",
    ]
    markers = "o^vsdP*X"
    all_sizes = [int(size) for size in next(iter(found.values()))]
    for (name, shares), colour, marker in zip(found.items(), colours, markers, strict=False):
        sizes = [int(size) for size in shares]
        means = [statistics.mean(of_seeds) for of_seeds in shares.values()]
        axes.plot(sizes, means, marker=marker, color=colour, label=name)
        lows, highs = zip(*((min(s), max(s)) for s in shares.values()), strict=True)
        axes.fill_between(sizes, lows, highs, color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(all_sizes, [str(size) for size in all_sizes])
    axes.set_xlabel("Images in a training batch")
    report.percents(axes.yaxis)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(BatchSize, __doc__))
