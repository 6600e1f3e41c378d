"""Instance norm removes the style of an image; adaptive instance norm replaces it with another.

    python -m examples.style

Uses the two photographs that come with scikit-learn, a palace and a flower. An autoencoder of a few
convolutions learns patches of both. Then its encoder is frozen, and the decoder learns to draw the features
of one photograph with each channel's mean and standard deviation from the other:

    AdaIN(content, style) = instance_norm(content) · std(style) + mean(style)

(Huang and Belongie, 2017, https://arxiv.org/abs/1703.06868). An intermediate result uses instance norm alone:
the features of every image with mean 0 and variance 1.

The photographs are by danielbuechele (the palace) and vultilion (the flower), on Flickr, under CC BY 2.0.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

import jaxnorm as jn

from . import report
from .experiment import Experiment, Rows, main

FEATURES = 32
WAYS = ("as it is", "decoded", "instance norm", "AdaIN with the other")


class Photographs(NamedTuple):
    """Two photographs, (H, W, 3), with values from 0 to 1."""

    name: str
    palace: np.ndarray
    flower: np.ndarray


class Encoder(nn.Module):
    """Encodes images as features (N, H/4, W/4, FEATURES)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns features."""
        x = nn.relu(nn.Conv(FEATURES, (5, 5), 2)(2 * x - 1))
        return nn.Conv(FEATURES, (3, 3), 2)(x)


class Decoder(nn.Module):
    """Decodes features to images."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns images with values from 0 to 1."""
        x = nn.relu(nn.Conv(2 * FEATURES, (3, 3))(x))
        x = nn.relu(nn.Conv(FEATURES, (3, 3))(x.repeat(2, 1).repeat(2, 2)))
        return nn.sigmoid(nn.Conv(3, (3, 3))(x.repeat(2, 1).repeat(2, 2)))


ENCODER: Any = Encoder()
DECODER: Any = Decoder()


def adain(content: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Gives each channel of `content` this mean and standard deviation."""
    return jn.instance_norm(content) * std + mean


def style_of(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each channel of each image, (N, 1, 1, channels)."""
    m = jn.moments(features, (1, 2))
    return m.mean, jnp.sqrt(m.var + 1e-6)


@dataclass(frozen=True, kw_only=True)
class Style(Experiment):
    """The style experiment."""

    name: ClassVar = "style"

    steps: int = 600
    """Training steps of the autoencoder, and then of the decoder."""
    patch: int = 64
    """Height and width of a patch in pixels."""
    batch_size: int = 16
    """Patches per step."""
    seed: int = 0
    """Random seed for the initialization and the patches."""

    def load(self) -> Photographs:
        """Loads the photographs, at half their size."""
        from sklearn.datasets import load_sample_images  # slow to import

        palace, flower = (image[:424:2, :640:2] / 255.0 for image in load_sample_images().images)
        return Photographs("photographs", palace.astype("float32"), flower.astype("float32"))

    def title(self, dataset: str) -> str:
        """The title of the plots."""
        return f"An autoencoder of two {dataset}, and the statistics of its features"

    def run(self, dataset: Photographs) -> Any:
        """Returns the distances between the styles before and after, and the images."""
        params = trained(self, dataset)
        images = {"palace": dataset.palace[None], "flower": dataset.flower[None]}
        features = {name: ENCODER.apply(params["encoder"], x) for name, x in images.items()}
        styles = {name: style_of(f) for name, f in features.items()}
        found: dict[str, Any] = {"distance": {}}
        rows = []
        for content, style in (("palace", "flower"), ("flower", "palace")):
            pictures = (
                images[content],
                drawn(params, features[content]),
                drawn(params, jn.instance_norm(features[content])),
                drawn(params, adain(features[content], *styles[style])),
            )
            found["distance"][content] = [distance(params, p, styles[style]) for p in pictures]
            rows.append(np.concatenate(pictures))
        return {**found, "pictures": (np.stack(rows) * 255).astype(np.uint8)}

    @staticmethod
    def tables(found: Any) -> dict[str, Rows]:
        """A table of the distance of each image's style from the style of the other photograph."""
        lines = (
            [content, *(f"{value:.2f}" for value in distances)]
            for content, distances in found["distance"].items()
        )
        return {"Distance of means and standard deviations to the other's": [["", *WAYS], *lines]}

    @staticmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws style.png."""
        if found["pictures"] is not None:
            draw(found["pictures"], title, folder / "style.png")


def drawn(params: Any, features: jax.Array) -> jax.Array:
    """Decodes these features to an image."""
    return DECODER.apply(params["decoder"], features)


def distance(params: Any, image: Any, style: tuple[jax.Array, jax.Array]) -> float:
    """Root mean square over channels of the differences in mean and in standard deviation."""
    own = style_of(ENCODER.apply(params["encoder"], image))
    squares = [jnp.mean((a - b) ** 2) for a, b in zip(own, style, strict=True)]
    return float(jnp.sqrt(sum(squares)))


# --- training ------------------------------------------------------------------------------------


def trained(options: Style, photographs: Photographs) -> Any:
    """Trains and returns the parameters of the encoder, and of a decoder for any content in any style."""
    rng = np.random.default_rng(options.seed)
    key, other = jax.random.split(jax.random.key(options.seed))
    patch = jnp.zeros((1, options.patch, options.patch, 3))
    encoder = ENCODER.init(key, patch)
    decoder = DECODER.init(other, ENCODER.apply(encoder, patch))
    params: Any = {"encoder": encoder, "decoder": decoder}

    tx = optax.adam(2e-3)
    state = tx.init(params)
    for _ in track(range(options.steps), "autoencoder", transient=True):
        params, state = step(reconstruction, tx, params, state, patches(rng, options, photographs))

    frozen = params["encoder"]
    tx = optax.multi_transform(
        {"still": optax.set_to_zero(), "moving": optax.adam(1e-3)},
        {"encoder": "still", "decoder": "moving"},
    )
    state = tx.init(params)
    for _ in track(range(options.steps), "decoder", transient=True):
        batch = patches(rng, options, photographs)
        params, state = step(stylization, tx, params, state, batch)
    assert jax.tree.all(jax.tree.map(np.array_equal, frozen, params["encoder"]))
    return params


@partial(jax.jit, static_argnums=(0, 1))
def step(loss_of: Any, tx: Any, params: Any, state: Any, images: jax.Array) -> tuple[Any, Any]:
    """Takes one step of the optimizer."""
    updates, state = tx.update(jax.grad(loss_of)(params, images), state, params)
    return optax.apply_updates(params, updates), state


def reconstruction(params: Any, images: jax.Array) -> jax.Array:
    """Mean squared error of images that are encoded and decoded."""
    return ((drawn(params, ENCODER.apply(params["encoder"], images)) - images) ** 2).mean()


def stylization(params: Any, images: jax.Array) -> jax.Array:
    """Loss of drawing each patch in the style of another: the drawn image must reproduce its features."""
    features = ENCODER.apply(params["encoder"], images)
    mean, std = style_of(jnp.roll(features, 1, 0))
    meant = adain(features, mean, std)
    seen = ENCODER.apply(params["encoder"], drawn(params, meant))
    own_mean, own_std = style_of(seen)
    of_style = ((own_mean - mean) ** 2 + (own_std - std) ** 2).mean()
    return ((seen - meant) ** 2).mean() + 3 * of_style + reconstruction(params, images)


def patches(rng: np.random.Generator, options: Style, photographs: Photographs) -> np.ndarray:
    """Returns patches of both photographs in turn, randomly mirrored."""
    chosen = []
    for i in range(options.batch_size):
        image = photographs.palace if i % 2 else photographs.flower
        top, left = (rng.integers(0, size - options.patch + 1) for size in image.shape[:2])
        patch = image[top : top + options.patch, left : left + options.patch]
        chosen.append(patch[:, :: rng.choice([-1, 1])])
    return np.stack(chosen)


# --- the plot ------------------------------------------------------------------------------------


def draw(pictures: np.ndarray, title: str, path: Path) -> None:
    """Draws a row for each photograph."""
    plt = report.plt
    figure, rows = plt.subplots(2, 4, figsize=(10, 3.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    for axes_of_row, row in zip(rows, pictures, strict=True):
        for axes, picture, name in zip(axes_of_row, row, WAYS, strict=True):
            axes.imshow(picture)
            axes.set_title(name, loc="left", fontsize=10, color=report.GREY)
            axes.set_axis_off()
    report.save(figure, path)


if __name__ == "__main__":
    sys.exit(main(Style, __doc__))
