"""A GAN on digits at several learning rates, with and without spectral norm in the discriminator.

    python -m examples.gan

Generator and discriminator have dense layers, since the digits have 8x8 pixels. The discriminator is trained
with the hinge loss, for five steps before each step of the generator, with or without spectral norm around
each layer (Miyato et al., 2018, https://arxiv.org/abs/1802.05957). During training, the example measures

- an upper bound on the discriminator's Lipschitz constant: the product of the largest singular values of its
  layers, since the slope of the activations is at most 1;
- how far generated images are from held-out ones: the Fréchet distance between the first 20 principal
  components of their pixels. It is not 0 for real images either, which it is also measured for.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from rich.progress import track

from jaxnorm import linen as jnl

from . import data, report
from .experiment import Experiment, Rows, main

WIDTHS = (128, 128, 128)  # of the discriminator's hidden layers
NOISE = 32  # length of the noise vector for each image
COMPONENTS = 20
LOOKS = 10  # measurements during a run
SAMPLES = 36  # images to draw
KINDS = {"without a norm": False, "with spectral norm": True}
ADAM = optax.scale_by_adam(b1=0.0, b2=0.9)


class Discriminator(nn.Module):
    """Scores how real images (N, pixels) look, with one number per image."""

    spectral: bool

    def setup(self) -> None:
        """Creates the layers."""
        layers = [nn.Dense(width) for width in (*WIDTHS, 1)]
        self.layers: list[Any] = [
            jnl.SpectralNorm(layer) if self.spectral else layer for layer in layers
        ]

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns scores (N,)."""
        for i in range(len(WIDTHS)):
            x = nn.leaky_relu(self.affine(i, x, train), 0.1)
        return self.affine(len(WIDTHS), x, train)[:, 0]

    def affine(self, i: int, x: jax.Array, train: bool) -> jax.Array:
        """Applies layer i, without its activation."""
        return self.layers[i](x, update_stats=train) if self.spectral else self.layers[i](x)


class Generator(nn.Module):
    """Generates images (N, pixels) in [-1, 1] from noise (N, NOISE)."""

    pixels: int = 64

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        """Returns images."""
        for _ in range(2):
            z = nn.relu(jnl.BatchNorm(not train, momentum=0.9)(nn.Dense(128, use_bias=False)(z)))
        return jnp.tanh(nn.Dense(self.pixels)(z))


@dataclass(frozen=True, kw_only=True)
class Gan(Experiment):
    """The GAN experiment."""

    name: ClassVar = "gan"

    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Learning rates of Adam, for both networks."""
    steps: int = 1500
    """Steps of the generator."""
    discriminator_steps: int = 5
    """Steps of the discriminator before each of them."""
    batch_size: int = 64
    """Real images per step, and as many generated images."""
    seeds: int = 3
    """Number of repetitions, each with a different seed."""

    def load(self) -> data.Dataset:
        """Loads the digits."""
        return data.load("digits")

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        each = self.discriminator_steps
        steps = "step" if each == 1 else "steps"
        return f"GAN on {dataset}, {each} {steps} of the discriminator for each of the generator"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the measurements of each kind, rate and seed, and images of seed 0 at the middle rate."""
        train, held_out = map(as_fed, (dataset.train_images, dataset.test_images))
        _, _, axes = jnp.linalg.svd(train - train.mean(0), full_matrices=False)
        runs = {
            kind: {
                str(rate): trained(kind, rate, self, train, held_out, axes) for rate in self.rates
            }
            for kind in KINDS
        }
        measured = {
            kind: {rate: found for rate, (found, _) in of_rates.items()}
            for kind, of_rates in runs.items()
        }
        middle = middle_of(measured)
        samples = [of_rates[middle][1] for of_rates in runs.values()]
        # The digits are sorted by writer.
        real = np.random.default_rng(0).permutation(len(train))[: len(held_out)]
        return {
            "real": distance(train[real], held_out, axes),
            "measured": measured,
            "samples": np.stack(
                [dataset.train_images[real[:SAMPLES]].reshape(SAMPLES, -1), *samples]
            ),
        }

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """Tables of the measurements at the end of training: medians and ranges over seeds."""
        rates = list(next(iter(found["measured"].values())))
        tables = {}
        for what, label in LABELS.items():
            rows = [
                [kind, *(at_the_end(of_rates[rate][what]) for rate in rates)]
                for kind, of_rates in found["measured"].items()
            ]
            if what == "distance":
                rows.append(["as many real images", *[short(found["real"])] * len(rates)])
            tables[f"{label} at the end, by learning rate"] = [["discriminator", *rates], *rows]
        return tables

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws gan.png and gan_samples.png."""
        draw(found, title, folder / "gan.png")
        if found["samples"] is not None:
            draw_samples(found["samples"], title, folder / "gan_samples.png")


LABELS = {
    "distance": "Fréchet distance to real images",
    "bound": "Upper bound on the Lipschitz constant",
    "loss": "Discriminator's loss",
}


def as_fed(images: np.ndarray) -> jax.Array:
    """Scales pixels to [-1, 1], one row for each image."""
    return jnp.asarray(images.reshape(len(images), -1), jnp.float32) / 127.5 - 1


def at_the_end(runs: list[list[float]]) -> str:
    """Formats the median of the last measurements of each seed, and their range."""
    last = [run[-1] for run in runs]
    return f"{short(statistics.median(last))} ({short(min(last))} to {short(max(last))})"


def short(value: float) -> str:
    """Formats a number with two digits, or without a fraction."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


# --- training ------------------------------------------------------------------------------------


class Player(NamedTuple):
    """One of the two networks, and the state of its optimizer."""

    variables: Any
    adam: Any


def trained(
    kind: str, rate: float, options: Gan, train: jax.Array, held_out: jax.Array, axes: jax.Array
) -> tuple[dict[str, Any], np.ndarray]:
    """Trains both networks; returns measurements on the way for each seed, and some images of seed 0."""
    generator, discriminator = Generator(train.shape[1]), Discriminator(KINDS[kind])
    models = generator, discriminator
    keys = jax.vmap(jax.random.key)(jnp.arange(options.seeds))

    def begun(key: jax.Array) -> tuple[Player, ...]:
        inputs = jnp.zeros((1, NOISE)), held_out[:1]
        both = [m.init(key, x, False) for m, x in zip(models, inputs, strict=True)]
        return tuple(Player(v, ADAM.init(v["params"])) for v in both)

    players = jax.vmap(begun)(keys)
    noise = jax.random.normal(jax.random.key(0), (len(held_out), NOISE))
    generated = jax.jit(jax.vmap(lambda v: generator.apply(v, noise, False)))
    found: dict[str, list[Any]] = {"step": [], **{what: [] for what in LABELS}}
    per_look = -(-options.steps // LOOKS)
    for done in track(range(0, options.steps, per_look), f"{kind}, rate {rate}", transient=True):
        count = min(per_look, options.steps - done)
        players, losses = after_steps(models, options, count, players, keys, train, rate, done)
        images = generated(players[0].variables)
        found["step"].append(done + count)
        found["distance"].append([distance(of_seed, held_out, axes) for of_seed in images])
        bounds = lipschitz_bounds(discriminator, train.shape[1], players[1].variables)
        found["bound"].append(bounds.tolist())
        found["loss"].append(losses.mean(1).tolist())
    by_seed = {what: [list(run) for run in zip(*found[what], strict=True)] for what in LABELS}
    images = generated(players[0].variables)[0, :SAMPLES]
    samples = np.asarray((images + 1) * 127.5).astype(np.uint8)
    return {"step": found["step"], **by_seed}, samples


@partial(jax.jit, static_argnums=(0, 1, 2))
def after_steps(
    models: Any,
    options: Gan,
    count: int,
    players: tuple[Player, Player],
    keys: jax.Array,
    train: jax.Array,
    rate: float,
    done: int,
) -> tuple[tuple[Player, Player], jax.Array]:
    """Takes `count` steps for every seed; also returns the discriminator's losses, (seeds, count)."""
    generator, discriminator = models

    def noise(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (options.batch_size, NOISE))

    def generated(variables: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        return generator.apply(variables, noise(key), True, mutable=["batch_stats"])

    def step(players: tuple[Player, Player], key: jax.Array) -> tuple[Any, jax.Array]:
        g, d = players

        def step_of_discriminator(d: Player, key: jax.Array) -> tuple[Player, jax.Array]:
            images_key, noise_key = jax.random.split(key)
            real = jax.random.choice(images_key, train, (options.batch_size,))
            fake, _ = generated(g.variables, noise_key)

            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                variables = {**d.variables, "params": params}
                both = jnp.concatenate([real, fake])
                scores, updated = discriminator.apply(
                    variables, both, True, mutable=["batch_stats"]
                )
                on_real, on_fake = jnp.split(scores, 2)
                return (nn.relu(1 - on_real) + nn.relu(1 + on_fake)).mean(), updated

            return learned(d, loss_of, rate)

        def generators_loss_of(params: Any) -> tuple[jax.Array, Any]:
            fake, updated = generated({**g.variables, "params": params}, key)
            return -discriminator.apply(d.variables, fake, False).mean(), updated

        keys = jax.random.split(key, options.discriminator_steps)
        d, losses = lax.scan(step_of_discriminator, d, keys)
        g, _ = learned(g, generators_loss_of, rate)
        return (g, d), losses[-1]

    def of_seed(players: tuple[Player, Player], key: jax.Array) -> tuple[Any, jax.Array]:
        return lax.scan(step, players, jax.random.split(jax.random.fold_in(key, done), count))

    return jax.vmap(of_seed)(players, keys)


def learned(
    player: Player, loss_of: Callable[[Any], tuple[jax.Array, Any]], rate: float
) -> tuple[Player, jax.Array]:
    """Returns the player after one step of Adam, and its loss before it."""
    params = player.variables["params"]
    (loss, updated), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    directions, adam = ADAM.update(grads, player.adam)
    params = jax.tree.map(lambda p, direction: p - rate * direction, params, directions)
    return Player({**player.variables, **updated, "params": params}, adam), loss


# --- measuring -----------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1))
def lipschitz_bounds(discriminator: Discriminator, pixels: int, variables: Any) -> jax.Array:
    """For every seed, the product of the layers' largest singular values."""

    def bound(variables: Any) -> jax.Array:
        product = jnp.ones(())
        for i, inputs in enumerate((pixels, *WIDTHS)):
            points = jnp.concatenate([jnp.eye(inputs), jnp.zeros((1, inputs))])
            y: Any = discriminator.apply(variables, i, points, False, method="affine")
            product *= jnp.linalg.norm(y[:-1] - y[-1], 2)
        return product

    return jax.vmap(bound)(variables)


def distance(images: jax.Array, others: jax.Array, axes: jax.Array) -> float:
    """The Fréchet distance of images (N, pixels) along the first axes."""
    return frechet(images @ axes[:COMPONENTS].T, others @ axes[:COMPONENTS].T)


def frechet(a: Any, b: Any) -> float:
    """Fréchet distance of two Gaussians fitted to (N, features): |μ₁-μ₂|² + tr(Σ₁+Σ₂-2√(Σ₁Σ₂))."""
    (mean, cov), (other_mean, other_cov) = (
        (np.mean(c, 0), np.cov(c, rowvar=False)) for c in map(np.float64, (a, b))
    )
    of_product = np.sqrt(np.maximum(np.linalg.eigvals(cov @ other_cov).real, 0)).sum()
    squares = ((mean - other_mean) ** 2).sum()
    return float(squares + np.trace(cov) + np.trace(other_cov) - 2 * of_product)


# --- the plots -----------------------------------------------------------------------------------

STYLES = {"without a norm": (report.ORANGE, "s--"), "with spectral norm": (report.BLUE, "o-")}


def draw(found: Any, title: str, path: Path) -> None:
    """Draws the distance and the bound by learning rate, and the distance on the way at the middle rate."""
    middle = middle_of(found["measured"])
    figure, panels = report.new_panels(
        title,
        [
            "Fréchet distance of generated to real images, at the end",
            f"The same during training, learning rate {middle}",
            "Lipschitz constant of the discriminator, at most, at the end",
        ],
    )
    for kind, of_rates in found["measured"].items():
        colour, style = STYLES[kind]
        rates = [float(rate) for rate in of_rates]
        for axes, what in ((panels[0], "distance"), (panels[2], "bound")):
            last = [[run[-1] for run in of_seeds[what]] for of_seeds in of_rates.values()]
            axes.plot(
                rates, [statistics.median(at) for at in last], style, color=colour, label=kind
            )
            lows, highs = [min(at) for at in last], [max(at) for at in last]
            axes.fill_between(rates, lows, highs, color=colour, alpha=0.15, lw=0)
            axes.set_xscale("log")
            axes.set_xlabel("Learning rate of Adam")
        for run in of_rates[middle]["distance"]:
            panels[1].plot(of_rates[middle]["step"], run, style[1:], color=colour, lw=1.3)
    for axes in panels[:2]:
        axes.axhline(found["real"], color=report.GREY, lw=1, ls=":", label="as many real images")
    for axes in panels:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panels[1].set_xlabel("Step of the generator")
    panels[0].legend(frameon=False)
    report.save(figure, path)


def draw_samples(samples: np.ndarray, title: str, path: Path) -> None:
    """Draws a square of real images, and of generated images for each kind."""
    names = ["Real", *(f"Generated, discriminator {kind}" for kind in KINDS)]
    figure, panels = report.new_panels(title, names)
    for axes, images in zip(panels, samples, strict=True):
        side, pixels = int(len(images) ** 0.5), int(images.shape[1] ** 0.5)
        framed = np.pad(
            images.reshape(-1, pixels, pixels), [(0, 0), (1, 1), (1, 1)], constant_values=128
        )
        grid = framed.reshape(side, side, pixels + 2, pixels + 2).transpose(0, 2, 1, 3)
        grid = grid.reshape(side * (pixels + 2), side * (pixels + 2))
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    report.save(figure, path)


def middle_of(measured: Any) -> str:
    """The middle learning rate."""
    rates = list(next(iter(measured.values())))
    return rates[len(rates) // 2]


if __name__ == "__main__":
    sys.exit(main(Gan, __doc__))
