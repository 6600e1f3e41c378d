"""Sequences of different lengths: a transformer and a recurrent network with batch, layer and RMS norm.

    python -m examples.sequence

The data are scikit-learn's digits, read as sequences: the ink of each digit in reading order, as (row,
column, strength). The sequences have 16 to 42 steps; shorter ones are padded with NaN, to check that no
padding leaks. A masked batch norm standardizes the three features; it is the only layer that padding reaches.

In the transformer, batch norm takes statistics over all time steps of all sequences. In the recurrent
network, it takes them over one time step, and shares its running statistics over time. Batch norm is also
trained without its mask, a common mistake (with zeros as padding, because NaN would break it at once).
"""

import statistics
import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from jaxnorm import linen as jnl, tools

from . import report
from .data import Dataset, load
from .experiment import Experiment, Rows, main, mean_and_range
from .models import Norm

WIDTH, HEADS, BLOCKS = 32, 4, 2
NORMS = ("none", "batch, not masked", "batch", "layer", "rms")


# --- the networks --------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Two blocks of attention and a small MLP, with a norm before each."""

    norm: Norm
    masked: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Returns logits (N, 10) for sequences (N, time, features) with a `mask` (N, time)."""

        def normalized(x: jax.Array) -> jax.Array:
            counted = mask[..., None] if self.masked else None
            return self.norm()(x, use_running_average=not train, mask=counted)

        x = nn.Dense(WIDTH)(standardized(x, mask, train))
        for _ in range(BLOCKS):
            attend = nn.MultiHeadDotProductAttention(HEADS)
            x = x + attend(normalized(x), mask=nn.make_attention_mask(mask, mask))
            x = x + nn.Dense(WIDTH)(nn.relu(nn.Dense(2 * WIDTH)(normalized(x))))
        return nn.Dense(10)(normalized(x).mean(1, where=mask[..., None]))


class Recurrent(nn.Module):
    """The recurrence h ← tanh(norm(W x + U h)), and a linear layer on the last h of each sequence."""

    norm: Norm
    masked: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """Returns logits (N, 10), like the transformer."""
        x = nn.Dense(WIDTH)(standardized(x, mask, train))
        cell, h = Cell(self.norm, self.masked, train), jnp.zeros((len(x), WIDTH))
        if self.is_initializing():
            cell(h, (x[:, 0], mask[:, 0]))  # creates the statistics, which the scan needs
        # All time steps share the statistics: training carries them along, evaluation broadcasts them.
        over_time = nn.scan(
            lambda cell, h, step: cell(h, step),
            variable_broadcast=["params"] if train else ["params", "batch_stats"],
            variable_carry=["batch_stats"] if train else [],
            split_rngs={"params": False},
            in_axes=1,
        )
        h, _ = over_time(cell, h, (x, mask))
        return nn.Dense(10)(h)


class Cell(nn.Module):
    """One time step; a sequence that has ended keeps its h."""

    norm: Norm
    masked: bool
    train: bool

    @nn.compact
    def __call__(self, h: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        """Returns the next h."""
        x, going_on = step[0], step[1][:, None]
        z = x + nn.Dense(WIDTH, use_bias=False, kernel_init=nn.initializers.orthogonal())(h)
        counted = going_on if self.masked else None
        z = self.norm()(z, use_running_average=not self.train, mask=counted)
        return jnp.where(going_on, nn.tanh(z), h), None


def standardized(x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    """Standardizes the features over the unmasked time steps, whatever the padding is."""
    return jnl.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=mask[..., None])


NETWORKS: dict[str, Any] = {"transformer": Transformer, "recurrent network": Recurrent}


@lru_cache
def network(kind: str, norm: str) -> Any:
    """Returns the same object for the same arguments, so that it is compiled once."""
    name = norm.split(",")[0]
    options = {"momentum": 0.9} if name == "batch" else {}
    return NETWORKS[kind](jnl.get_norm(name, **options), masked=norm != "batch, not masked")


# --- the experiment ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sequence(Experiment):
    """The sequence experiment."""

    name: ClassVar = "sequence"

    norms: tuple[str, ...] = NORMS
    """Norms to compare."""
    epochs: int = 20
    """Passes over the training sequences."""
    batch_size: int = 32
    """Sequences per batch."""
    lr: float = 3e-3
    """Learning rate of Adam."""
    seeds: int = 3
    """Number of repetitions, each with a different seed."""

    def load(self) -> Dataset:
        """Loads scikit-learn's 8x8 digits."""
        return load("digits")

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"The ink of {dataset}, read as sequences"

    def run(self, dataset: Dataset) -> Any:
        """Returns held-out accuracies after each epoch for all seeds, and the effect of NaN padding."""
        train, test = sequences(dataset.train_images), sequences(dataset.test_images)
        examples = (*train, dataset.train_labels), (*test, dataset.test_labels)
        return {
            "accuracy": {
                kind: {
                    norm: [trained(kind, norm, self, seed, *examples) for seed in range(self.seeds)]
                    for norm in self.norms
                }
                for kind in NETWORKS
            },
            "padding": {kind: nan_against_zeros(kind, *examples[0]) for kind in NETWORKS},
        }

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """Tables of the final accuracy, and of the differences due to padding."""
        of_kinds = list(found["accuracy"].values())
        return {
            "Held-out accuracy": [
                ["norm", *found["accuracy"]],
                *(
                    [norm, *(mean_and_range([run[-1] for run in runs[norm]]) for runs in of_kinds)]
                    for norm in next(iter(of_kinds))
                ),
            ],
            "Padding of NaN against zeros, batch norm with its mask": [
                ["network", "largest difference of logits", "of gradients"],
                *([k, *(f"{d:g}" for d in differ)] for k, differ in found["padding"].items()),
            ],
        }

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws sequence.png."""
        draw(found["accuracy"], title, folder / "sequence.png")


def sequences(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row, column, strength) of the ink in each image, padded with NaN, and the mask."""
    values = np.full((len(images), 64, 3), np.nan, np.float32)
    counts = np.zeros((len(images), 64), bool)
    for i, image in enumerate(images[..., 0]):
        rows, columns = np.nonzero(image)
        values[i, : len(rows)] = np.stack([rows, columns, image[rows, columns] / 32.0], -1)
        counts[i, : len(rows)] = True
    longest = counts.any(0).sum()
    return values[:, :longest], counts[:, :longest]


def trained(kind: str, norm: str, options: Sequence, seed: int, train: Any, test: Any) -> Any:
    """Trains a network; returns the held-out accuracy after each epoch."""
    if norm == "batch, not masked":
        train, test = ((np.nan_to_num(x), *rest) for x, *rest in (train, test))
    model = network(kind, norm)
    variables = model.init(jax.random.key(seed), *train[:2], train=False)
    state = tools.TrainState.of(model, variables, adam(options.lr))
    accuracies = []
    note = f"{kind}, {norm}, seed {seed}"
    for epoch in track(range(options.epochs), note, transient=True):
        order = np.random.default_rng((seed, epoch)).permutation(len(train[0]))
        for i in range(len(order) // options.batch_size):
            chosen = order[i * options.batch_size : (i + 1) * options.batch_size]
            state, _ = train_step(model, state, *(a[chosen] for a in train))
        accuracies.append(float(accuracy(model, state.variables, *test)))
    return accuracies


adam = lru_cache(optax.adam)


@partial(jax.jit, static_argnames="model")
def train_step(
    model: Any, state: tools.TrainState, x: jax.Array, mask: jax.Array, labels: jax.Array
) -> tuple[tools.TrainState, Any]:
    """Takes one training step with cross-entropy; also returns its logits and gradients."""

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        variables = {**state.variables, "params": params}
        logits, updated = model.apply(variables, x, mask, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits, updated)

    grads, (logits, updated) = jax.grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, **updated), (logits, grads)


@partial(jax.jit, static_argnames="model")
def accuracy(model: Any, variables: Any, x: Any, mask: Any, labels: Any) -> jax.Array:
    """Fraction of sequences classified correctly in evaluation mode."""
    return (model.apply(variables, x, mask, train=False).argmax(-1) == labels).mean()


def nan_against_zeros(kind: str, x: Any, mask: Any, labels: Any) -> tuple[float, float]:
    """Largest differences of logits and of gradients between padding with NaN and with zeros."""
    model = network(kind, "batch")
    variables = model.init(jax.random.key(0), x[:64], mask[:64], train=False)
    state = tools.TrainState.of(model, variables, adam(0.0))
    found = [
        train_step(model, state, padded, mask[:64], labels[:64])[1]
        for padded in (x[:64], np.nan_to_num(x[:64]))
    ]
    logits, grads = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *found)
    return logits, max(jax.tree.leaves(grads))


# --- the plot ------------------------------------------------------------------------------------


def draw(found: dict[str, dict[str, list[list[float]]]], title: str, path: Path) -> None:
    """Draws accuracy over the epochs: lines are means, bands the range over seeds."""
    figure, panels = report.new_panels(title, [kind.capitalize() for kind in found])
    styles = (
        (report.GREY, ":"),
        (report.ORANGE, "--"),
        (report.BLUE, "-"),
        ("#009E73", "-."),
        ("black", (0, (5, 1))),
    )
    for axes, of_norms in zip(panels, found.values(), strict=True):
        for (norm, runs), (colour, style) in zip(of_norms.items(), styles, strict=False):
            epochs = range(1, len(runs[0]) + 1)
            of_epochs = list(zip(*runs, strict=True))
            means = [statistics.mean(shares) for shares in of_epochs]
            axes.plot(epochs, means, linestyle=style, color=colour, label=norm)
            lows, highs = zip(*((min(s), max(s)) for s in of_epochs), strict=True)
            axes.fill_between(epochs, lows, highs, color=colour, alpha=0.12, lw=0)
        axes.set_xlabel("Epoch (lines: means, bands: range over seeds)")
        axes.set_ylabel("Held-out accuracy")
        report.percents(axes.yaxis)
    panels[0].legend(title="norm", frameon=False, loc="lower right")
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(Sequence, __doc__))
