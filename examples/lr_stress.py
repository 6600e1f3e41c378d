"""Raises the learning rate until training breaks: with batch norm, group norm, frozen batch norm or none.

    python -m examples.lr_stress

Trains the CNN of the CIFAR-10 example while the learning rate rises from 0.003 to 30, by a factor of 10
every 150 steps, and finds where the loss stops recovering: with batch norm, without any norm, with group
norm, and with batch norm frozen at the initial statistics, which only scales and shifts each channel and
does not normalize. For batch norm, the accuracy in evaluation is tracked as well.
"""

import math
import statistics
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from rich.progress import track

from jaxnorm import tools

from . import cifar10, data, measure, report
from .experiment import OnImages, Rows, main
from .training import evaluated, initial_variables, network_of, shuffled

GUESSING = math.log(10)  # cross-entropy (nats) of guessing among ten classes
NETWORKS = ("batch", "group", "frozen batch", "none")


@dataclass(frozen=True, kw_only=True)
class LrStress(OnImages):
    """The learning-rate experiment."""

    name: ClassVar = "lr_stress"

    low: float = 0.003
    """Learning rate of the first step."""
    high: float = 30.0
    """Learning rate of the last step."""
    steps: int = 600
    """Training steps, each with 64 images."""
    seeds: int = 3
    """Number of repetitions, each with a different seed."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"CNN on {dataset}, batches of 64"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the losses and accuracies along the ramp, for each network and seed."""
        return {
            kind: [ramp(kind, seed, self, dataset) for seed in range(self.seeds)]
            for kind in NETWORKS
        }

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table of where each network breaks, and its lowest loss."""
        lines = [["network", "breaks at (each seed)", "least loss (median)"]]
        for network, runs in found.items():
            rates = sorted(breaks_at(run) for run in runs)
            shown = ("never" if math.isinf(rate) else f"{rate:.2g}" for rate in rates)
            least = statistics.median(float(smoothed(run["loss"]).min()) for run in runs)
            lines.append([network, ", ".join(shown), f"{least:.2f}"])
        return {"The learning rate rising": lines}

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws lr_stress.png."""
        draw(found, title, folder / "lr_stress.png")


def ramp(
    kind: str, seed: int, options: LrStress, dataset: data.Dataset
) -> dict[str, list[float | None]]:
    """Returns the loss at each rate; for batch norm, also accuracies with both kinds of statistics."""
    name: Any = "batch" if kind == "frozen batch" else kind
    settings = cifar10.completed(cifar10.Settings(norm=name, epochs=1), dataset)
    model = network_of(settings, len(dataset.classes))
    settings = cifar10.replace(settings, seed=seed)
    variables = initial_variables(model, settings, dataset)
    if kind == "frozen batch":
        batches = [dataset.train_images[:512]]
        variables = tools.recalibrate(
            model, batches, variables=variables, run=evaluated, layer_by_layer=True
        )
        model = tools.freeze(model, variables=variables)
    rate, tx = ramping(options)
    state = tools.TrainState.of(model, variables, tx)
    held_out = dataset.test_images[:512], dataset.test_labels[:512]
    found: dict[str, list[float | None]] = {
        "rate": [],
        "loss": [],
        "at": [],
        "running": [],
        "batch": [],
    }
    batches = shuffled(dataset, settings, options.steps)
    shown = track(batches, f"{kind}, seed {seed}", options.steps, transient=True)
    for i, (images, labels) in enumerate(shown):
        lr = float(rate(i))
        state, loss = train_step(model, state, images, labels)
        found["rate"].append(lr)
        found["loss"].append(float(loss) if math.isfinite(loss) else None)
        if not math.isfinite(loss):
            break
        if kind == "batch" and i % 20 == 19:
            of = model, state.variables, *held_out
            found["at"].append(lr)
            found["running"].append(measure.accuracy_with_running_statistics(*of))
            found["batch"].append(measure.accuracy_with_batch_statistics(*of, 512))
    return found


@lru_cache
def ramping(options: LrStress) -> tuple[Any, optax.GradientTransformation]:
    """Returns the learning-rate schedule and the optimizer that follows it."""
    rate: Any = optax.exponential_decay(options.low, options.steps - 1, options.high / options.low)
    return rate, optax.sgd(rate, 0.9, nesterov=True)


@partial(jax.jit, static_argnames="model")
def train_step(
    model: Any, state: tools.TrainState, images: jax.Array, labels: jax.Array
) -> tuple[tools.TrainState, jax.Array]:
    """Takes one training step with plain cross-entropy; returns the new state and the loss."""

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {**state.variables, "params": params},
            measure.scaled(images),
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated

    (loss, updated), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, **updated), loss


def smoothed(losses: list[Any]) -> np.ndarray:
    """Mean of the losses over 10 steps; None (a loss that is not finite) counts as infinite."""
    values = np.array([math.inf if loss is None else loss for loss in losses])
    return np.array([values[max(0, i - 9) : i + 1].mean() for i in range(len(values))])


def breaks_at(found: dict[str, list[Any]]) -> float:
    """The learning rate from which on the loss is no better than guessing; infinite if there is none."""
    losing = smoothed(found["loss"]) > 0.99 * GUESSING
    if not losing[-1]:
        return math.inf
    return found["rate"][len(losing) - int(np.argmin(losing[::-1]))]


# --- the plot --------------------------------------------------------------------------------------


def draw(found: dict[str, list[dict[str, list[Any]]]], title: str, path: Path) -> None:
    """Draws all training losses and the accuracy of batch norm in evaluation against the learning rate."""
    figure, (left, right) = report.new_panels(
        title, ["Training loss as the learning rate rises", "Batch norm, evaluated on the way"]
    )
    colours = (report.BLUE, "#009E73", report.ORANGE, "black")
    for (network, runs), colour, style in zip(
        found.items(), colours, ["-", "--", "-.", ":"], strict=True
    ):
        for i, run in enumerate(runs):
            loss = np.minimum(smoothed(run["loss"]), 10)
            label = network if i == 0 else None
            left.plot(run["rate"], loss, style, color=colour, lw=1.3, alpha=0.8, label=label)
    left.set_ylim(0, 4)
    left.set_ylabel("Cross-entropy (nats), mean of 10 steps")
    left.legend(title="norm", frameon=False, loc="lower right")
    for key, colour, label in (
        ("batch", report.ORANGE, "statistics of 512 images"),
        ("running", report.BLUE, "running statistics"),
    ):
        for i, run in enumerate(found["batch"]):
            right.plot(run["at"], run[key], color=colour, lw=1.3, label=None if i else label)
    right.set_ylabel("Accuracy on 512 held-out images")
    report.percents(right.yaxis)
    right.legend(frameon=False, loc="lower center")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("Learning rate")
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(LrStress, __doc__))
