"""Initialization and depth: badly scaled initial weights and many layers, with and without batch norm.

    python -m examples.init_and_depth

Trains a narrower version of the CIFAR-10 example's CNN for 120 steps. First, all initial convolution kernels
are multiplied by a factor from 1/10 to 10; then each of the three groups gets more convolutions (there are no
shortcuts, so only the norm keeps the signal alive). Each network is trained with batch norm before the
activation, after it, and without a norm.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from . import cifar10, data, report
from .experiment import OnImages, Rows, main, mean_and_range
from .training import accuracy, fit, initial_variables, network_of

NETWORKS: dict[str, dict[str, Any]] = {
    "batch norm before the activation": {"norm": "batch", "place": "before"},
    "batch norm after the activation": {"norm": "batch", "place": "after"},
    "no norm": {"norm": "none"},
}


@dataclass(frozen=True, kw_only=True)
class InitAndDepth(OnImages):
    """The experiment on initialization and depth."""

    name: ClassVar = "init_and_depth"

    scales: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Factors by which the initial kernels are multiplied."""
    depths: tuple[int, ...] = (1, 3, 6)
    """Convolutions in each of the three groups."""
    images: int = 7_680
    """Training images, each seen once, in batches of 64."""
    seeds: int = 3
    """Number of repetitions, each with a different seed."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"CNN on {self.images:,} images of {dataset}, each seen once"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the held-out accuracies of all seeds, for each network by scale and by depth."""
        dataset = dataset.first(self.images, 4096)

        def shares(network: str, scale: float, depth: int) -> list[float]:
            return [trained(network, scale, depth, seed, dataset) for seed in range(self.seeds)]

        return {
            "scale": {
                network: {str(scale): shares(network, scale, 2) for scale in self.scales}
                for network in NETWORKS
            },
            "depth": {
                network: {str(3 * depth): shares(network, 1.0, depth) for depth in self.depths}
                for network in NETWORKS
            },
        }

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """Tables of accuracy by scale and by depth."""
        titles = {
            "scale": "Held-out accuracy by the factor of the initial kernels",
            "depth": "Held-out accuracy by the number of convolutions",
        }
        return {
            title: [
                ["network", *next(iter(found[what].values()))],
                *(
                    [network, *(mean_and_range(of_seeds) for of_seeds in shares.values())]
                    for network, shares in found[what].items()
                ),
            ]
            for what, title in titles.items()
        }

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws init_and_depth.png."""
        draw(found, title, folder / "init_and_depth.png")


def trained(kind: str, scale: float, depth: int, seed: int, dataset: data.Dataset) -> float:
    """Trains from kernels multiplied by `scale`; returns the held-out accuracy."""
    settings = cifar10.Settings(
        widths=(32, 32, 64), depth=depth, epochs=1, lr=0.05, **NETWORKS[kind]
    )
    settings = cifar10.completed(settings, dataset)
    model = network_of(settings, len(dataset.classes))
    settings = cifar10.replace(settings, seed=seed)
    start = initial_variables(model, settings, dataset)
    flat: dict[Any, Any] = traverse_util.flatten_dict(start["params"])
    params = {path: scale * leaf if leaf.ndim == 4 else leaf for path, leaf in flat.items()}
    variables = {**start, "params": traverse_util.unflatten_dict(params)}
    note = f"{kind}, kernels times {scale:g}, {3 * depth} convolutions, seed {seed}"
    state = fit(model, settings, dataset, variables=variables, note=note)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params))
    return accuracy(model, state.variables, dataset) if finite else 1 / len(dataset.classes)


def draw(found: Any, title: str, path: Path) -> None:
    """Draws accuracy by scale and by depth: lines are means, bands the range over seeds."""
    figure, panels = report.new_panels(
        title, ["Initial kernels multiplied by a factor", "More convolutions, one after the other"]
    )
    styles = {
        name: style
        for name, style in zip(
            NETWORKS,
            ((report.BLUE, "o", "-"), (report.ORANGE, "^", "--"), (report.GREY, "s", ":")),
            strict=True,
        )
    }
    for axes, (what, lines) in zip(panels, found.items(), strict=True):
        for network, shares in lines.items():
            colour, marker, style = styles[network]
            places = [float(place) for place in shares]
            means = [statistics.mean(of_seeds) for of_seeds in shares.values()]
            lows, highs = zip(*((min(s), max(s)) for s in shares.values()), strict=True)
            axes.plot(places, means, style, marker=marker, color=colour, label=network)
            axes.fill_between(places, lows, highs, color=colour, alpha=0.15, lw=0)
        report.percents(axes.yaxis)
        axes.set_ylabel("Held-out accuracy")
        axes.set_xlabel(
            "Factor of the initial kernels" if what == "scale" else "Convolutions after the stem"
        )
        axes.set_ylim(bottom=0)
    panels[0].set_xscale("log")
    panels[0].legend(frameon=False, loc="lower center")
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(InitAndDepth, __doc__))
