"""Classifies corrupted test images with running, batch, mixed and re-estimated statistics.

    python -m examples.shift

Trains the CNN of the CIFAR-10 example on clean images. Then corrupts the test images, and classifies them
with the same weights and

- running statistics, which come from clean images;
- statistics of the batch itself (64 images), as in training;
- a mixture of 16 / (16 + 64) running statistics and the rest batch statistics (Schneider et al., 2020,
  https://arxiv.org/abs/2006.16971);
- statistics re-estimated on 2,048 corrupted images without labels (`tools.recalibrate`; Li et al., 2016,
  https://arxiv.org/abs/1603.04779).
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import jax
import numpy as np

from jaxnorm import tools

from . import cifar10, data, measure, report
from .experiment import OnImages, Rows, main, mean_and_range
from .training import evaluated, fit, network_of

Found: TypeAlias = dict[str, dict[str, list[float]]]
"""Accuracy by corruption and kind of statistics, for each seed."""

PRIOR = 16  # weight of the running statistics in the mixture, in images


@dataclass(frozen=True, kw_only=True)
class Shift(OnImages):
    """The experiment on corrupted images."""

    name: ClassVar = "shift"

    epochs: int = 2
    """Passes over the training images."""
    images: int = 4096
    """Test images per corruption."""
    batch_size: int = 64
    """Images per batch for batch statistics."""
    seeds: int = 3
    """Number of repetitions, each with a different seed."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"CNN trained on clean {dataset}"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the accuracies of all seeds, for each corruption and each kind of statistics."""
        settings = cifar10.completed(cifar10.Settings(epochs=self.epochs), dataset)
        model = network_of(settings, len(dataset.classes))
        images = dataset.test_images[: self.images]
        labels = dataset.test_labels[: self.images]
        found: Found = {name: {} for name in CORRUPTIONS}
        for seed in range(self.seeds):
            seeded = cifar10.replace(settings, seed=seed)
            state = fit(model, seeded, dataset, note=f"clean images, seed {seed}")
            variables = jax.device_get(state.variables)
            for name, corrupt in CORRUPTIONS.items():
                met = corrupt(images, seed)
                shares = accuracies(model, variables, met, labels, self.batch_size)
                for kind, share in shares.items():
                    found[name].setdefault(kind, []).append(share)
        return found

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table with a row for each corruption: mean and range over the seeds."""
        header = ["images", *next(iter(found.values()))]
        lines = ([name, *map(mean_and_range, kinds.values())] for name, kinds in found.items())
        return {"Accuracy with each kind of statistics": [header, *lines]}

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws shift.png."""
        draw(found, title, folder / "shift.png")


# --- the statistics ------------------------------------------------------------------------------


def accuracies(model: Any, variables: Any, images: Any, labels: Any, size: int) -> dict[str, float]:
    """Accuracy on these images with each kind of statistics."""
    some = images[: min(2048, len(images))]
    batches = [some[i : i + size] for i in range(0, len(some), size)]
    again = tools.recalibrate(model, batches, variables=variables, run=evaluated)
    with_share = partial(accuracy_with_share_of_running, model, variables, images, labels, size)
    return {
        "running": measure.accuracy_with_running_statistics(model, variables, images, labels),
        "batch": with_share(0.0),
        "mixture": with_share(PRIOR / (PRIOR + size)),
        "re-estimated": measure.accuracy_with_running_statistics(model, again, images, labels),
    }


def accuracy_with_share_of_running(
    model: Any, variables: Any, images: Any, labels: Any, size: int, share: float
) -> float:
    """Accuracy with `share` of the running statistics and the rest from the batch.

    One step in training mode with momentum `share` computes this mixture, and evaluation then uses it.
    """
    whole = len(labels) // size * size
    parts = zip(*(np.split(a[:whole], whole // size) for a in (images, labels)), strict=True)
    return sum(int(right(model, share, variables, *part)) for part in parts) / whole


@partial(jax.jit, static_argnames=("model", "share"))
def right(
    model: Any, share: float, variables: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """The number of images in a batch that are classified correctly."""
    moving, x = model.clone(norm=partial(model.norm, momentum=share)), measure.scaled(images)
    _, updated = moving.apply(variables, x, train=True, mutable=["batch_stats"])
    return (moving.apply({**variables, **updated}, x, train=False).argmax(-1) == labels).sum()


# --- the corruptions -----------------------------------------------------------------------------


def _noise(images: Any, seed: int) -> Any:
    return images + np.random.default_rng(seed).normal(0, 25, images.shape)


def _blur(images: Any, seed: int) -> Any:
    return sum(np.roll(images, (i, j), (1, 2)) / 25.0 for i in range(-2, 3) for j in range(-2, 3))


def _fog(images: Any, seed: int) -> Any:
    return images * 0.4 + 130


def _cast(images: Any, seed: int) -> Any:
    return images * np.array([1.0, 0.7, 0.4])[: images.shape[-1]]


def _corruption(change: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """Wraps `change` to take and return uint8 images."""
    return lambda images, seed: np.clip(change(images.astype(float), seed), 0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[Any, int], Any]] = {
    "clean": _corruption(lambda images, seed: images),
    "noise (std 25)": _corruption(_noise),
    "blur (5x5)": _corruption(_blur),
    "fog (contrast 0.4)": _corruption(_fog),
    "yellow light": _corruption(_cast),
}


# --- the plot --------------------------------------------------------------------------------------


def draw(found: Found, title: str, path: Path) -> None:
    """Draws a row for each corruption: the mean over the seeds, and a line for the range."""
    figure, axes = report.new_figure(title, "The same weights, test images corrupted")
    names = list(found)[::-1]
    styles = {
        "running": ("o", report.GREY),
        "batch": ("^", report.ORANGE),
        "mixture": ("s", report.BLUE),
        "re-estimated": ("d", "black"),
    }
    for kind, (marker, colour) in styles.items():
        shares = [found[name][kind] for name in names]
        means = [statistics.mean(of_seeds) for of_seeds in shares]
        rows = range(len(names))
        axes.plot(means, rows, marker, color=colour, ms=8, alpha=0.85, label=kind)
        axes.hlines(rows, [*map(min, shares)], [*map(max, shares)], color=colour, lw=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.grid(axis="x", color="#dddddd")
    report.percents(axes.xaxis)
    axes.set_xlabel("Accuracy")
    axes.legend(title="statistics", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(Shift, __doc__))
