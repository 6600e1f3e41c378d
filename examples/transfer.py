"""Fine-tunes a trained network on other data: what to do with its batch norms?

    python -m examples.transfer

Trains the CNN of the CIFAR-10 example on the first five classes. Then fine-tunes it on 500 images of the
other five, which look as if taken with another camera: low in contrast and yellowish. Batches have 64 or 4
images, and the batch norms are

- frozen with their original statistics, which come from the old data;
- frozen with statistics re-estimated on the new data (`tools.recalibrate`, then `tools.freeze`);
- trained as before, with the statistics of each batch;
- trained, and re-estimated at the end.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxnorm import tools

from . import cifar10, data, report
from .experiment import OnImages, Rows, main, mean_and_range
from .training import accuracy, evaluated, fit

RECIPES = (
    "frozen, old statistics",
    "frozen, re-estimated",
    "trained",
    "trained, then re-estimated",
)


@dataclass(frozen=True, kw_only=True)
class Transfer(OnImages):
    """The fine-tuning experiment."""

    name: ClassVar = "transfer"

    epochs: int = 3
    """Passes over the old data."""
    images: int = 500
    """New images to fine-tune on."""
    fine_tuning_epochs: int = 15
    """Passes over the new images."""
    batch_sizes: tuple[int, ...] = (64, 4)
    """Batch sizes for fine-tuning."""
    seeds: int = 3
    """Number of fine-tuning runs, each with different images."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"{self.images} images of other classes and colours, {dataset}"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the held-out accuracies of all seeds, by batch size and recipe."""
        old = classes_of(dataset, range(5))
        new = shifted(classes_of(dataset, range(5, 10)))
        settings = cifar10.completed(cifar10.Settings(epochs=self.epochs), dataset)
        model = cifar10.build_model(settings, 5)
        trained = fit(model, settings, old, note="old data").variables
        found: dict[str, dict[str, list[float]]] = {}
        for size in self.batch_sizes:
            found[str(size)] = {recipe: [] for recipe in RECIPES}
            for seed in range(self.seeds):
                some = few(new, self.images, seed)
                # Scale the learning rate with the batch size: each image moves the weights equally far.
                tuning = cifar10.replace(
                    settings,
                    epochs=self.fine_tuning_epochs,
                    batch_size=size,
                    lr=0.03 * size / 64,
                    seed=seed,
                )
                for recipe, share in fine_tuned(model, trained, tuning, some).items():
                    found[str(size)][recipe].append(share)
        return found

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table of the mean and range over the seeds."""
        lines = (
            [recipe, *(mean_and_range(shares[recipe]) for shares in found.values())]
            for recipe in RECIPES
        )
        header = ["batch norms", *(f"batches of {size}" for size in found)]
        return {"Held-out accuracy on the new data": [header, *lines]}

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws transfer.png."""
        draw(found, title, folder / "transfer.png")


def fine_tuned(
    model: Any, trained: Any, settings: cifar10.Settings, dataset: data.Dataset
) -> dict[str, float]:
    """Fine-tunes with each recipe; returns the held-out accuracies on the new data."""
    start = with_new_head(trained, settings.seed)
    found = {}
    for recipe, variables in (
        ("frozen, old statistics", start),
        ("frozen, re-estimated", recalibrated(model, start, dataset)),
    ):
        frozen = tools.freeze(model, variables=variables)
        state = fit(frozen, settings, dataset, variables=variables, note=recipe)
        found[recipe] = accuracy(model, state.variables, dataset)
    state = fit(model, settings, dataset, variables=start, note="trained")
    found["trained"] = accuracy(model, state.variables, dataset)
    again = recalibrated(model, jax.device_get(state.variables), dataset)
    found["trained, then re-estimated"] = accuracy(model, again, dataset)
    return found


def recalibrated(model: Any, variables: Any, dataset: data.Dataset) -> Any:
    """Returns the variables with statistics re-estimated on the training images."""
    images = dataset.train_images
    batches = [images[i : i + 100] for i in range(0, len(images), 100)]
    return tools.recalibrate(
        model, batches, variables=variables, run=evaluated, layer_by_layer=True
    )


def with_new_head(variables: Any, seed: int) -> Any:
    """Returns the variables with a newly initialized last layer."""
    kernel = variables["params"]["Dense_0"]["kernel"]
    fresh = jax.nn.initializers.lecun_normal()(jax.random.key(seed), kernel.shape, kernel.dtype)
    return {**variables, "params": {**variables["params"], "Dense_0": {"kernel": fresh}}}


# --- data ----------------------------------------------------------------------------------------


def classes_of(dataset: data.Dataset, classes: range) -> data.Dataset:
    """Returns the images of these classes, with labels from 0."""

    def part(images: Any, labels: Any) -> tuple[Any, Any]:
        chosen = np.isin(labels, classes)
        return images[chosen], labels[chosen] - classes[0]

    names = tuple(dataset.classes[i] for i in classes)
    train = part(dataset.train_images, dataset.train_labels)
    return data.Dataset(
        dataset.name, *train, *part(dataset.test_images, dataset.test_labels), names
    )


def shifted(dataset: data.Dataset) -> data.Dataset:
    """Reduces the contrast to two fifths and adds a yellow cast."""
    channels = dataset.train_images.shape[-1]
    cast = np.array([110, 90, 40])[:channels]

    def shift(images: Any) -> Any:
        return (images * 0.4 + cast).astype(np.uint8)

    return dataset._replace(
        train_images=shift(dataset.train_images), test_images=shift(dataset.test_images)
    )


def few(dataset: data.Dataset, images: int, seed: int) -> data.Dataset:
    """Keeps `images` training images, chosen at random."""
    chosen = np.random.default_rng(seed).permutation(len(dataset.train_labels))[:images]
    return dataset._replace(
        train_images=dataset.train_images[chosen], train_labels=dataset.train_labels[chosen]
    )


# --- the plot --------------------------------------------------------------------------------------


def draw(found: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    """Draws a panel for each batch size: points for the seeds, bars for their means."""
    figure, panels = report.new_panels(title, [f"Fine-tuned with batches of {n}" for n in found])
    for axes, shares in zip(panels, found.values(), strict=True):
        names = RECIPES[::-1]
        axes.barh(names, [statistics.mean(shares[name]) for name in names], color=report.BLUE)
        for row, name in enumerate(names):
            axes.plot(shares[name], [row] * len(shares[name]), "o", color=report.ORANGE, ms=4)
            axes.text(0.02, row, f"{statistics.mean(shares[name]):.1%}", color="white", va="center")
        axes.grid(visible=False)
        report.percents(axes.xaxis)
        axes.set_xlabel("Held-out accuracy (points: seeds)")
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(Transfer, __doc__))
