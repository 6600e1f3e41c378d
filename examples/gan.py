"""A small GAN on real images, with and without spectral norm in the discriminator.

    python -m examples.gan

The images are CIFAR-10 at 16x16 pixels (digits have 8x8). The generator has batch norm. Both discriminators
have three convolutions and a linear layer and are trained with the hinge loss; one has spectral norm around
each layer (Miyato et al., 2018, https://arxiv.org/abs/1802.05957). During training, the example measures

- an upper bound on the discriminator's Lipschitz constant: the product of the largest singular values of its
  layers. For a convolution, it is that of the whole linear map, found by power iteration; spectral norm
  divides by that of the kernel as a matrix, which can be smaller;
- how steep the discriminator is: the largest gradient norm at real and generated images and between them;
- how far generated images are from real ones: the Fréchet distance between their logits under a classifier.
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
from jax import lax
from rich.progress import track

from jaxnorm import linen as jnl, tools

from . import cifar10, data, measure, report
from .experiment import OnImages, Rows, main
from .training import fit, network_of

WIDTHS = (16, 32, 64)  # of the discriminator's convolutions
NOISE = 64  # length of the noise vector for each image
KINDS = {"without a norm": False, "spectral norm": True}


class Discriminator(nn.Module):
    """Scores how real images (N, H, W, channels) look, with one number per image."""

    spectral: bool

    def setup(self) -> None:
        """Creates the layers."""
        layers = [*(nn.Conv(width, (4, 4), 2) for width in WIDTHS), nn.Dense(1)]
        self.layers = [jnl.SpectralNorm(layer) if self.spectral else layer for layer in layers]

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns scores (N,)."""
        for i in range(len(WIDTHS)):
            x = nn.leaky_relu(self.affine(i, x, train), 0.1)
        return self.affine(len(WIDTHS), x, train)[:, 0]

    def affine(self, i: int, x: jax.Array, train: bool) -> jax.Array:
        """Applies layer i, without its activation."""
        x = x if i < len(WIDTHS) else x.reshape(len(x), -1)
        return self.layers[i](x, update_stats=train) if self.spectral else self.layers[i](x)


class Generator(nn.Module):
    """Generates images of `pixels` x `pixels` in [-1, 1] from noise (N, NOISE)."""

    pixels: int
    channels: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> jax.Array:
        """Returns images."""
        x = nn.Dense(4 * 4 * 64)(z).reshape(-1, 4, 4, 64)
        while x.shape[1] < self.pixels:
            x = nn.relu(jnl.BatchNorm(not train, momentum=0.9)(x))
            x = nn.ConvTranspose(x.shape[-1] // 2, (4, 4), (2, 2), use_bias=False)(x)
        x = nn.relu(jnl.BatchNorm(not train, momentum=0.9)(x))
        return jnp.tanh(nn.Conv(self.channels, (3, 3))(x))


@dataclass(frozen=True, kw_only=True)
class Gan(OnImages):
    """The GAN experiment."""

    name: ClassVar = "gan"

    steps: int = 1000
    """Training steps for both networks."""
    batch_size: int = 64
    """Real images per step, and as many generated images."""
    lr: float = 5e-4
    """Learning rate of Adam for both networks."""
    seeds: int = 3
    """Number of repetitions, each with a different seed."""

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"GAN on small images of {dataset}, batches of {self.batch_size}"

    def run(self, dataset: data.Dataset) -> Any:
        """Returns the measurements for each kind and seed, and some generated images of seed 0."""
        dataset = smaller(dataset)
        settings = cifar10.completed(cifar10.Settings(widths=(32, 64), epochs=1), dataset)
        model = network_of(settings, len(dataset.classes))
        some = dataset.first(12_800)
        variables = fit(model, settings, some, note="classifier").variables
        logits = jax.jit(lambda images: model.apply(variables, images, train=False))
        runs = {
            kind: [trained(kind, seed, self, dataset, logits) for seed in range(self.seeds)]
            for kind in KINDS
        }
        return {
            "measured": {kind: [found for found, _ in of_seeds] for kind, of_seeds in runs.items()},
            "samples": np.stack([of_seeds[0][1] for of_seeds in runs.values()]),
        }

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table of the measurements at the end of training: medians and ranges over seeds."""
        rows: list[list[str]] = [["at the end", *found["measured"]]]
        for what, label in LABELS.items():
            cells = []
            for runs in found["measured"].values():
                last = [run[what][-1] for run in runs]
                middle = statistics.median(last)
                cells.append(f"{middle:.3g} ({min(last):.3g} to {max(last):.3g})")
            rows.append([label, *cells])
        return {"The discriminator, and what the generator learned from it": rows}

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws gan.png and gan_samples.png."""
        draw(found["measured"], title, folder / "gan.png")
        if found["samples"] is not None:
            draw_samples(found["samples"], title, folder / "gan_samples.png")


LABELS = {
    "bound": "Lipschitz constant, at most",
    "steepest": "longest gradient found",
    "loss": "discriminator's loss",
    "distance": "Fréchet distance of logits",
}


def smaller(dataset: data.Dataset) -> data.Dataset:
    """Scales the images down to at most 16x16 pixels by averaging blocks of pixels."""

    def pooled(images: np.ndarray) -> np.ndarray:
        by = max(1, images.shape[1] // 16)
        n, height, width, channels = images.shape
        blocks = images.reshape(n, height // by, by, width // by, by, channels)
        return blocks.mean((2, 4)).astype(np.uint8)

    return dataset._replace(
        train_images=pooled(dataset.train_images), test_images=pooled(dataset.test_images)
    )


# --- training ------------------------------------------------------------------------------------


@lru_cache
def optimizer(lr: float) -> optax.GradientTransformation:
    """Adam with the low momentum that GANs need."""
    return optax.adam(lr, b1=0.5)


def trained(
    kind: str, seed: int, options: Gan, dataset: data.Dataset, logits: Any
) -> tuple[dict[str, list[float]], np.ndarray]:
    """Trains both networks; returns measurements every 100 steps, and 64 images from the end."""
    images, size = dataset.train_images, options.batch_size
    models = generator, discriminator = network(kind, images.shape[1], images.shape[-1])
    keys = jax.random.split(jax.random.key(seed), 3)
    held_out = as_fed(dataset.test_images[:512])
    states = tuple(
        tools.TrainState.of(model, model.init(key, *args), optimizer(options.lr))
        for model, key, args in (
            (generator, keys[0], (jnp.zeros((1, NOISE)), False)),
            (discriminator, keys[1], (held_out[:1], False)),
        )
    )
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"step": [], **{what: [] for what in LABELS}}
    noise = jax.random.normal(keys[2], (len(held_out), NOISE))
    for step in track(range(1, options.steps + 1), f"{kind}, seed {seed}", transient=True):
        chosen = rng.integers(0, len(images), size)
        states, loss = train_step(models, states, keys[2], as_fed(images[chosen]))
        if step % 100 == 0 or step == options.steps:
            fake = generator.apply(states[0].variables, noise, False)
            found["step"].append(step)
            found["loss"].append(float(loss))
            found["bound"].append(float(lipschitz_bound(discriminator, states[1].variables, fake)))
            steepest = longest_gradient(discriminator, states[1].variables, held_out, fake)
            found["steepest"].append(float(steepest))
            found["distance"].append(frechet(logits(2 * held_out), logits(2 * fake)))
    fake = generator.apply(states[0].variables, noise[:64], False)
    return found, np.asarray((fake + 1) * 127.5).astype(np.uint8)


@lru_cache
def network(kind: str, pixels: int, channels: int) -> tuple[Any, Any]:
    """Returns generator and discriminator: the same objects for all seeds, so they are compiled once."""
    return Generator(pixels, channels), Discriminator(KINDS[kind])


def as_fed(images: np.ndarray) -> jax.Array:
    """Scales pixels to [-1, 1], half of the classifier's input range."""
    return measure.scaled(jnp.asarray(images)) / 2


@partial(jax.jit, static_argnums=0)
def train_step(
    models: Any, states: tuple[tools.TrainState, tools.TrainState], key: jax.Array, real: jax.Array
) -> tuple[Any, jax.Array]:
    """Updates the discriminator, then the generator; also returns the discriminator's loss."""
    (generator, discriminator), (g, d) = models, states
    key, other = jax.random.split(jax.random.fold_in(key, d.step))

    def generated(params: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        z = jax.random.normal(key, (len(real), NOISE))
        variables = {**g.variables, "params": params}
        return generator.apply(variables, z, True, mutable=["batch_stats"])

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        fake, _ = generated(g.params, key)
        variables = {**d.variables, "params": params}
        both = jnp.concatenate([real, fake])
        scores, updated = discriminator.apply(variables, both, True, mutable=["batch_stats"])
        on_real, on_fake = jnp.split(scores, 2)
        return (nn.relu(1 - on_real) + nn.relu(1 + on_fake)).mean(), updated

    (loss, updated), grads = jax.value_and_grad(loss_of, has_aux=True)(d.params)
    d = d.apply_gradients(grads=grads, **updated)

    def generators_loss_of(params: Any) -> tuple[jax.Array, Any]:
        fake, updated = generated(params, other)
        return -discriminator.apply(d.variables, fake, False).mean(), updated

    grads, updated = jax.grad(generators_loss_of, has_aux=True)(g.params)
    return (g.apply_gradients(grads=grads, **updated), d), loss


# --- measuring -----------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def lipschitz_bound(discriminator: Any, variables: Any, x: jax.Array) -> jax.Array:
    """Product of the layers' largest singular values; the slope of the activations is at most 1."""
    x, bound = x[:1], jnp.ones(())
    for i in range(len(WIDTHS) + 1):
        layer = partial(discriminator.apply, variables, i, train=False, method="affine")
        bound *= largest_singular_value(layer, x)
        x = layer(x)
    return bound


def largest_singular_value(affine: Any, x: jax.Array, steps: int = 30) -> jax.Array:
    """The largest singular value of the linear part of a function, by power iteration."""
    _, transposed = jax.vjp(affine, x)

    def step(v: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        (w,) = transposed(jax.jvp(affine, (x,), (v,))[1])
        length = jnp.linalg.norm(w)
        return w / length, jnp.sqrt(length)

    start = jax.random.normal(jax.random.key(0), x.shape)
    _, values = lax.scan(step, start / jnp.linalg.norm(start), length=steps)
    return values[-1]


@partial(jax.jit, static_argnums=0)
def longest_gradient(
    discriminator: Any, variables: Any, real: jax.Array, fake: jax.Array
) -> jax.Array:
    """The largest gradient norm over real images, generated images and the points halfway between."""
    points = jnp.concatenate([real, fake, (real + fake) / 2])
    gradients = jax.grad(lambda x: discriminator.apply(variables, x, False).sum())(points)
    return jnp.linalg.norm(gradients.reshape(len(points), -1), axis=1).max()


def frechet(a: Any, b: Any) -> float:
    """Fréchet distance of two Gaussians fitted to (N, features): |μ₁-μ₂|² + tr(Σ₁+Σ₂-2√(Σ₁Σ₂))."""
    (mean, cov), (other_mean, other_cov) = (
        (np.mean(c, 0), np.cov(c, rowvar=False)) for c in map(np.float64, (a, b))
    )
    of_product = np.sqrt(np.maximum(np.linalg.eigvals(cov @ other_cov).real, 0)).sum()
    squares = ((mean - other_mean) ** 2).sum()
    return float(squares + np.trace(cov) + np.trace(other_cov) - 2 * of_product)


# --- the plots -----------------------------------------------------------------------------------


def draw(found: dict[str, list[dict[str, list[float]]]], title: str, path: Path) -> None:
    """Draws a panel for each measurement, with a line for each seed."""
    figure, panels = report.new_panels(
        title, ["Of the discriminator", "Its loss", "Of the generated images"]
    )
    styles = {
        "without a norm": (report.ORANGE, "--"),
        "spectral norm": (report.BLUE, "-"),
    }
    for axes, what in zip(panels, ("bound", "loss", "distance"), strict=True):
        for kind, runs in found.items():
            colour, style = styles[kind]
            for i, run in enumerate(runs):
                label = None if i else kind
                axes.plot(run["step"], run[what], style, color=colour, lw=1.3, label=label)
        axes.set_xlabel("Training step")
        axes.set_ylabel(LABELS[what][0].upper() + LABELS[what][1:])
    for axes in (panels[0], panels[2]):
        axes.set_yscale("log")
    panels[0].legend(title="discriminator", frameon=False)
    report.save(figure, path)


def draw_samples(samples: np.ndarray, title: str, path: Path) -> None:
    """Draws an 8x8 grid of generated images for each kind."""
    figure, panels = report.new_panels(title, [f"Discriminator: {kind}" for kind in KINDS])
    for axes, images in zip(panels, samples, strict=True):
        _, height, width, channels = images.shape
        grid = images.reshape(8, 8, height, width, channels).transpose(0, 2, 1, 3, 4)
        grid = grid.reshape(8 * height, 8 * width, channels)
        axes.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(Gan, __doc__))
