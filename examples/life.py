"""The life of a batch norm on CIFAR-10: examine it in training, average, re-estimate and swap it.

    python -m examples.life

Trains the CNN of the CIFAR-10 example with Flax's default momentum of 0.99, and applies the tools to it:

- `tools.examine` during training: how far the running statistics lag, and what that costs in evaluation;
- `tools.average` and `tools.recalibrate`: statistics for averaged weights, estimated in several ways;
- `tools.swap`: group norm instead of the trained network's batch norm, and how much training that takes;
- `tools.accumulate`: batches in parts, and how the usual accumulation loop affects the running statistics.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxnorm import tools

from . import cifar10, data, measure, report
from .experiment import OnImages, Rows, main
from .training import accuracy, evaluated, fit, shuffled, step_count

DECAY = 0.995  # for the average of the weights, which spans about 200 steps


@dataclass(frozen=True, kw_only=True)
class Life(OnImages):
    """The experiment on the life of a batch norm."""

    name: ClassVar = "life"

    epochs: int = 3
    """Passes over the training images."""
    looks: tuple[int, ...] = (25, 50, 100, 200, 400, 800, 1600)
    """Steps at which the network is examined."""
    batch_size: int = 64
    """Images per training batch."""
    recalibration: tuple[int, ...] = (64, 256, 1024, 4096)
    """Numbers of training images to estimate statistics from."""
    parts: tuple[int, ...] = (1, 4, 16, 32)
    """Numbers of parts to divide a batch into."""
    seed: int = 0
    """Random seed for the initialization and the order of the images."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"CNN on {dataset}"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the results of each part."""
        settings = cifar10.completed(
            cifar10.Settings(
                epochs=self.epochs, batch_size=self.batch_size, momentum=0.99, seed=self.seed
            ),
            dataset,
        )
        model = cifar10.build_model(settings, len(dataset.classes))
        looks, halfway, latest = trained_with_looks(model, settings, dataset, self.looks)
        print(tools.examine(model, sample(dataset, 512), variables=latest, run=evaluated))
        return {
            "looks": looks,
            "averages": statistics_for(model, *halfway, dataset, self.recalibration),
            "swaps": swapped(model, settings, dataset, latest),
            "parts": {
                str(count): in_parts(model, settings, dataset, latest, count)
                for count in self.parts
            },
        }

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table for each part."""
        looks = [
            [
                f"{look['step']:,}",
                f"{look['kl']:.2g}",
                f"{look['running']:.1%}",
                f"{look['recalibrated']:.1%}",
            ]
            for look in found["looks"]
        ]
        parts = [
            [count, *(f"{share:.1%}" for share in shares.values())]
            for count, shares in found["parts"].items()
        ]
        return {
            "Running statistics on the way (accuracy on 2,048 held-out images)": [
                ["step", "mean KL", "running", "re-estimated"],
                *looks,
            ],
            "Statistics for weights averaged halfway (held-out accuracy)": [
                ["weights and statistics", ""],
                *([name, f"{share:.1%}"] for name, share in found["averages"].items()),
            ],
            "Group norm instead of batch norm (held-out accuracy)": [
                ["network", ""],
                *([name, f"{share:.1%}"] for name, share in found["swaps"].items()),
            ],
            "Batches in parts (held-out accuracy)": [
                ["parts", *next(iter(found["parts"].values()))],
                *parts,
            ],
        }

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws examine.png, recalibrate.png, swap.png and accumulate.png."""
        draw_looks(found["looks"], f"{title}, momentum 0.99", folder / "examine.png")
        draw_averages(found["averages"], title, folder / "recalibrate.png")
        draw_swaps(found["swaps"], title, folder / "swap.png")
        draw_parts(found["parts"], title, folder / "accumulate.png")


def sample(dataset: data.Dataset, images: int) -> Any:
    """Returns the first `images` training images."""
    return dataset.train_images[:images]


def trained_with_looks(
    model: Any, settings: cifar10.Settings, dataset: data.Dataset, at: tuple[int, ...]
) -> tuple[list[dict[str, float]], tuple[Any, Any], Any]:
    """Returns what was seen at these steps, the variables and their average halfway, and the last ones."""
    looks: list[dict[str, float]] = []
    average = jax.jit(partial(tools.average, decay=DECAY))
    averaged: Any = None
    halfway: Any = None
    last = step_count(settings, dataset)

    def look(step: int, state: cifar10.TrainState) -> None:
        nonlocal averaged, halfway
        averaged = average(state.variables if averaged is None else averaged, state.variables)
        if step == last // 2:
            halfway = jax.device_get((state.variables, averaged))
        if step not in at and step != last:
            return
        variables = jax.device_get(state.variables)
        seen = tools.examine(model, sample(dataset, 512), variables=variables, run=evaluated)
        again = recalibrated(model, variables, sample(dataset, 2048))
        looks.append(
            {
                "step": step,
                "kl": float(np.mean([layer.kl for layer in seen.layers.values()])),
                "output_change": seen.output_change,
                "running": accuracy(model, variables, dataset, 2048),
                "recalibrated": accuracy(model, again, dataset, 2048),
            }
        )

    state = fit(model, settings, dataset, after_step=look)
    return looks, halfway, jax.device_get(state.variables)


def recalibrated(model: Any, variables: Any, images: Any, size: int = 64, **options: Any) -> Any:
    """Returns the variables with statistics re-estimated on these images, in batches of `size`."""
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    return tools.recalibrate(model, batches, variables=variables, run=evaluated, **options)


def statistics_for(
    model: Any, latest: Any, averaged: Any, dataset: data.Dataset, counts: tuple[int, ...]
) -> dict[str, float]:
    """Held-out accuracy of the averaged weights, with statistics from several sources."""
    measure = partial(accuracy, model, dataset=dataset)
    found = {
        "latest weights and statistics": measure(latest),
        "averaged weights, statistics of the latest": measure(
            {**averaged, "batch_stats": latest["batch_stats"]}
        ),
        "averaged weights, averaged statistics": measure(averaged),
    }
    ways: list[tuple[str, int, dict[str, Any]]] = [
        ("population, batches of 64", 64, {}),
        ("population, batches of 8", 8, {}),
        ("update_bn, batches of 8", 8, {"method": "update_bn"}),
        ("layer by layer", 64, {"layer_by_layer": True}),
    ]
    for count in counts:
        for name, size, options in ways:
            variables = recalibrated(model, averaged, sample(dataset, count), size, **options)
            found[f"averaged weights, {count} images, {name}"] = measure(variables)
    return found


def swapped(
    model: Any, settings: cifar10.Settings, dataset: data.Dataset, variables: Any
) -> dict[str, float]:
    """Held-out accuracy with group norm: just swapped, after one more epoch, and after one from scratch."""
    other, carried = tools.swap(model, "group", variables=variables, num_groups=8)
    epoch = cifar10.replace(settings, epochs=1)
    gentle = cifar10.replace(epoch, lr=settings.lr / 5)
    tuned = fit(other, gentle, dataset, variables=carried, note="fine-tuning group norm")
    scratch = fit(other, epoch, dataset, note="group norm from scratch")
    return {
        "batch norm, trained": accuracy(model, variables, dataset),
        "swapped for group norm, as it is": accuracy(other, carried, dataset),
        "swapped, and one epoch of training more": accuracy(other, tuned.variables, dataset),
        "group norm, one epoch from scratch": accuracy(other, scratch.variables, dataset),
    }


def in_parts(
    model: Any, settings: cifar10.Settings, dataset: data.Dataset, variables: Any, count: int
) -> dict[str, float]:
    """Held-out accuracy with running statistics of 40 batches in `count` parts, updated in two ways.

    The weights are fixed. With momentum 0.9, forty batches are enough to forget the initial statistics.
    """
    model = model.clone(norm=partial(model.norm, momentum=0.9))
    batches = [measure.scaled(images) for images, _ in shuffled(dataset, settings, 40)]

    @jax.jit
    def once(variables: Any, images: jax.Array) -> Any:
        found = tools.accumulate(
            lambda model, images: model(images, train=True).mean(),
            model,
            images,
            micro_batches=count,
            variables=variables,
        )
        return {**variables, **found.updated}

    @jax.jit
    def for_every_part(variables: Any, images: jax.Array) -> Any:
        for i in range(count):
            _, updated = model.apply(
                variables, images[i::count], train=True, mutable=["batch_stats"]
            )
            variables = {**variables, **updated}
        return variables

    accuracies = {}
    for name, step in (("accumulate", once), ("an update for every part", for_every_part)):
        moved = variables
        for images in batches:
            moved = step(moved, images)
        accuracies[name] = accuracy(model, jax.device_get(moved), dataset)
    return accuracies


# --- the plots -----------------------------------------------------------------------------------


def draw_looks(looks: list[dict[str, float]], title: str, path: Path) -> None:
    """Draws the KL divergence of running and batch statistics over the steps, and its cost in evaluation."""
    figure, (left, right) = report.new_panels(
        title,
        ["How far the running statistics are from the batch's", "What that does to evaluation"],
    )
    steps = [look["step"] for look in looks]
    left.plot(steps, [look["kl"] for look in looks], "-o", color=report.BLUE)
    left.axhline(0.02, color=report.GREY, lw=0.8, ls="--")
    left.text(steps[0], 0.021, "above: examine says look", color=report.GREY)
    left.set_yscale("log")
    left.set_ylabel("KL divergence, mean over layers and channels")
    for key, colour, label in (
        ("recalibrated", report.ORANGE, "re-estimated statistics"),
        ("running", report.BLUE, "running statistics"),
    ):
        values = [look[key] for look in looks]
        right.plot(steps, values, "-o", color=colour, label=label)
    right.set_ylabel("Accuracy on 2,048 held-out images")
    report.percents(right.yaxis)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("Training step")
    report.save(figure, path)


def draw_averages(averages: dict[str, float], title: str, path: Path) -> None:
    """Draws accuracy of the averaged weights against the number of images used for their statistics."""
    figure, axes = report.new_figure(
        title, "Averaged weights, by the number of images behind their statistics"
    )
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, share in averages.items():
        _, *rest = name.split(", ", 2)
        if rest and rest[0].endswith(" images"):
            lines.setdefault(rest[1], []).append((int(rest[0].split()[0]), share))
    colours = (report.BLUE, report.ORANGE, report.GREY, "black")
    for (name, points), colour, marker in zip(lines.items(), colours, "o^sd", strict=True):
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=name)
    start = min(count for points in lines.values() for count, _ in points)
    for name in (
        "averaged weights, averaged statistics",
        "averaged weights, statistics of the latest",
    ):
        axes.axhline(averages[name], color=report.GREY, lw=0.8, ls="--")
        axes.annotate(
            name.split(", ")[1],
            (start, averages[name]),
            (0, 3),
            textcoords="offset points",
            color=report.GREY,
            fontsize=9,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("Training images that the statistics are estimated from")
    axes.set_ylabel("Held-out accuracy")
    report.percents(axes.yaxis)
    axes.legend(frameon=False, loc="lower right")
    report.save(figure, path)


def draw_swaps(swaps: dict[str, float], title: str, path: Path) -> None:
    """Draws accuracy before and after the swap."""
    figure, axes = report.new_figure(title, "Group norm instead of batch norm")
    names = list(swaps)[::-1]
    bars = axes.barh(names, [swaps[name] for name in names], color=report.BLUE)
    axes.bar_label(bars, [f"{swaps[name]:.1%}" for name in names], padding=3)
    axes.grid(visible=False)
    report.percents(axes.xaxis)
    axes.set_xlabel("Held-out accuracy")
    report.save(figure, path)


def draw_parts(parts: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Draws accuracy against the number of parts, for both ways to update running statistics."""
    figure, axes = report.new_figure(
        title, "The same weights, with running statistics from batches in parts"
    )
    counts = [int(count) for count in parts]
    for name, colour, marker in (
        ("accumulate", report.BLUE, "o"),
        ("an update for every part", report.ORANGE, "^"),
    ):
        shares = [of_count[name] for of_count in parts.values()]
        axes.plot(counts, shares, marker=marker, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("Parts of a batch")
    axes.set_ylabel("Held-out accuracy")
    report.percents(axes.yaxis)
    axes.legend(frameon=False, loc="lower left")
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(Life, __doc__))
