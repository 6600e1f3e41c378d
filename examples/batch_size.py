"""Batch sizes from 2 to 256, at the same number of images: where batch norm fails, and what does not.

    python -m examples.batch_size          # about 9 minutes on two cores

Trains the CNN of the CIFAR-10 example on 12,800 images with every norm and batch size, at a learning rate
that follows the batch size. Then data-parallel on 8 devices, each with a batch of that size: with statistics
of each device alone, and synced, which are those of 8 times as many images. (One device computes both:
`virtual_batch_size` is what a device has.)

Batch norm is evaluated on the same held-out images with its running statistics, with statistics
re-estimated on the training images, and with those of batches as small as in training.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table

from jaxnorm import tools

from . import cifar10, data, measure, report
from .training import accuracy, evaluated, fit

console = Console()
DEVICES = 8
LARGEST = 256  # images in a batch over all devices


@dataclass(frozen=True)
class Options:
    """What is trained."""

    sizes: tuple[int, ...] = (2, 4, 8, 32, 256)
    """Batch sizes."""
    norms: tuple[cifar10.NormName, ...] = ("batch", "group", "layer", "instance")
    """Norms."""
    images: int = 12_800
    """Training images, each seen once."""
    lr: float = 0.05
    """Learning rate of batches of 64; it is proportional to the batch size up to there, and stays."""
    seed: int = 0
    """Of the initialization and the order of the images."""
    data: Literal["auto", "cifar10", "digits"] = "auto"
    """CIFAR-10, scikit-learn's 8x8 digits, or CIFAR-10 if it can be had and else digits."""
    data_dir: Path | None = None
    """Folder that holds cifar-10-batches-bin/ [unset: $JAXNORM_DATA, or it is downloaded once]."""
    out: Path = Path("runs/batch-size")
    """The folder for batch_size.json and the picture."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = tyro.cli(
        Options,
        prog="python -m examples.batch_size",
        description=(__doc__ or "").split("\n")[0],
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    dataset = data.load(options.data, options.data_dir)
    dataset = dataset._replace(
        train_images=dataset.train_images[: options.images],
        train_labels=dataset.train_labels[: options.images],
    )
    found: dict[str, dict[str, float]] = {}
    runs = [(norm, size, 1) for norm in options.norms for size in options.sizes]
    runs += [("batch", size, DEVICES) for size in options.sizes if size * DEVICES <= LARGEST]
    for norm, size, devices in runs:
        for line, share in trained(options, norm, size, devices, dataset).items():
            found.setdefault(line, {})[str(size)] = share
        console.print(f"{norm} norm, batches of {size}, devices: {devices}", highlight=False)
    console.print(table(found))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "batch_size.json").write_text(json.dumps(found, indent=1))
    title = f"CNN on {len(dataset.train_labels):,} images of {dataset.name}, each seen once"
    draw(found, title, options.out / "batch_size.png")
    console.print(f"Figures and picture are in {options.out}/", soft_wrap=True, highlight=False)
    return 0


def trained(
    options: Options, norm: Any, size: int, devices: int, dataset: data.Dataset
) -> dict[str, float]:
    """Held-out accuracy, in each of the ways to train and to evaluate that there are for this norm."""
    if devices > 1:
        lines = {"batch, 8 devices, synced": None, "batch, 8 devices, not synced": size}
        return {
            line: accuracy(*fitted(options, norm, size * devices, dataset, own), dataset)
            for line, own in lines.items()
        }
    model, variables = fitted(options, norm, size, dataset)
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
    options: Options, norm: Any, size: int, dataset: data.Dataset, virtual: int | None = None
) -> tuple[Any, Any]:
    """The network, and its variables after training."""
    settings = cifar10.Settings(
        norm=norm,
        epochs=1,
        batch_size=size,
        lr=options.lr * min(size, 64) / 64,
        # As many images make the running average, whatever the batch size.
        momentum=0.9 ** (min(size, 64) / 64),
        seed=options.seed,
    )
    settings = cifar10.completed(settings, dataset)
    model = cifar10.build_model(settings, len(dataset.classes))
    if virtual is not None:
        model = model.clone(norm=partial(model.norm, virtual_batch_size=virtual))
    state = fit(model, settings, dataset, note=f"{norm}, batches of {size}")
    return model, jax.device_get(state.variables)


# --- the table and the picture -------------------------------------------------------------------


def table(found: dict[str, dict[str, float]]) -> Table:
    """Accuracy by batch size."""
    result = Table(title="Held-out accuracy", title_justify="left")
    result.add_column("norm")
    sizes = list(next(iter(found.values())))
    for size in sizes:
        result.add_column(size, justify="right")
    for name, shares in found.items():
        result.add_row(name, *(f"{shares[size]:.1%}" if size in shares else "" for size in sizes))
    return result


def draw(found: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """A line for each norm and way to evaluate."""
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
        axes.plot(sizes, list(shares.values()), marker=marker, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(all_sizes, [str(size) for size in all_sizes])
    axes.set_xlabel("Images in a training batch")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
