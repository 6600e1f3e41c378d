"""Tables and plots of the CIFAR-10 example, and the plot style of all examples."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Render to files without a screen, unless a notebook has already chosen a backend.
os.environ.setdefault("MPLBACKEND", "Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator
from rich.table import Table

# Okabe and Ito's colours, distinguishable in greyscale and for the colour-blind.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"


def accuracy_table(measured: Mapping[str, Any]) -> Table:
    """A table of accuracy with each kind of statistics."""
    table = Table(title=f"Accuracy on {measured['images']:,} held-out images", title_justify="left")
    table.add_column("normalized with")
    table.add_column("accuracy", justify="right")
    table.add_row("running statistics (eval mode)", f"{measured['running']:.2%}")
    if "mirrored" in measured:
        average = "running statistics, average with the mirror image"
        table.add_row(average, f"{measured['mirrored']:.2%}")
    for size, accuracy in measured["batch"].items():
        table.add_row(f"statistics of batches of {size} (train mode)", f"{accuracy:.2%}")
    return table


def gap_table(measured: Mapping[str, Any]) -> Table:
    """A table of each layer's running statistics compared with the statistics of a batch."""
    table = Table(
        title=f"Running statistics against a batch of {min(512, measured['images'])}",
        title_justify="left",
    )
    table.add_column("layer")
    table.add_column("mean is off by", justify="right")
    table.add_column("std differs by", justify="right")
    for gap in measured["gap"]:
        table.add_row(gap["layer"], f"{gap['mean']:.3f} std", f"{gap['std'] - 1:.1%}")
    return table


def draw(
    epochs: Sequence[Mapping[str, Any]], measured: Mapping[str, Any], title: str, folder: Path
) -> None:
    """Draws curves.png and train_vs_eval.png, if there is data for them."""
    if epochs:
        draw_curves(epochs, title, folder / "curves.png")
    if measured["batch"]:
        by_size = {int(size): accuracy for size, accuracy in measured["batch"].items()}
        draw_train_vs_eval(measured["running"], by_size, title, folder / "train_vs_eval.png")


def draw_curves(epochs: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws accuracy over the epochs: in training, and in evaluation with both kinds of statistics."""
    figure, axes = new_figure(title, "Training batches against held-out images")
    _of_accuracy(axes)
    number = [epoch["epoch"] for epoch in epochs]
    lines = [
        ("training batches, augmented", [e["train_accuracy"] for e in epochs], GREY, "--", "s")
    ]
    if epochs[0]["batch"]:
        largest = max(epochs[0]["batch"], key=int)
        by_batch = [epoch["batch"][largest] for epoch in epochs]
        lines.append((f"held out, statistics of batches of {largest}", by_batch, ORANGE, "-", "^"))
    lines.append(("held out, running statistics", [e["running"] for e in epochs], BLUE, "-", "o"))
    for label, values, colour, style, marker in lines:
        marker_every = max(1, len(number) // 12)
        axes.plot(
            number, values, style, color=colour, marker=marker, markevery=marker_every, label=label
        )
    axes.set_xlabel("Epoch (passes over the training images)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", frameon=False)
    save(figure, path)


def draw_train_vs_eval(
    running: float, by_batch_size: Mapping[int, float], title: str, path: Path
) -> None:
    """Draws accuracy with batch statistics against the batch size, and a line for running statistics."""
    figure, axes = new_figure(title, "The same held-out images, the same weights")
    _of_accuracy(axes)
    axes.axhline(running, color=BLUE)
    sizes = sorted(by_batch_size)
    values = [by_batch_size[size] for size in sizes]
    axes.plot(sizes, values, "-^", color=ORANGE)
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("Images in the batch at evaluation")
    low, high = min(*values, running), max(*values, running)
    room = max(high - low, 0.02)
    axes.set_ylim(low - 0.15 * room, high + 0.25 * room)
    # Labels are on the side of a point that is away from the line, and right of the rising curve.
    for size, value in zip(sizes, values, strict=True):
        axes.annotate(
            f"{value:.1%}",
            (size, value),
            (0, 8) if value >= running else (6, -14),
            textcoords="offset points",
            ha="center" if value >= running else "left",
            color=ORANGE,
        )
    axes.annotate(
        f"running statistics (eval mode): {running:.1%}",
        (sizes[-1], running),
        (0, -14) if values[-1] >= running else (0, 5),
        textcoords="offset points",
        ha="right",
        color=BLUE,
    )
    # Place it beside the first segment: the curve rises there, so the space below it is free.
    beside = math.sqrt(sizes[0] * sizes[1]), (values[0] + values[1]) / 2
    axes.annotate(
        "statistics of the batch (train mode)",
        beside,
        (12, -6),
        textcoords="offset points",
        color=ORANGE,
    )
    save(figure, path)


def new_figure(title: str, subtitle: str) -> tuple[Any, Axes]:
    """Returns a figure in the common style."""
    figure, (axes,) = new_panels(title, [subtitle])
    return figure, axes


def new_panels(title: str, subtitles: Sequence[str]) -> tuple[Any, Sequence[Axes]]:
    """Returns a figure in the common style with panels side by side."""
    count = len(subtitles)
    figure, (panels,) = plt.subplots(
        1, count, figsize=(7 * count, 4.5), layout="constrained", squeeze=False
    )
    figure.suptitle(title, x=0.02 / count, ha="left", fontweight="bold")
    for axes, subtitle in zip(panels, subtitles, strict=True):
        axes.set_title(subtitle, loc="left", fontsize=10, color=GREY)
        axes.grid(axis="y", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save(figure: Any, path: Path) -> None:
    """Saves a figure and closes it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)


def percents(axis: Axis) -> None:
    """Labels an axis of shares in percent. The labels are exact, and none is above 100 %."""
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(
        lambda share, _: f"{round(100 * share, 6):g}%" if share < 1 + 1e-9 else ""
    )


def _of_accuracy(axes: Axes) -> None:
    axes.set_ylabel("Accuracy")
    percents(axes.yaxis)
