"""Measures what batch norm does in training and in evaluation mode, on the same held-out images.

- `accuracy_with_running_statistics`: evaluation mode. Each image is classified independently.
- `accuracy_with_batch_statistics`: training mode. Images are classified in batches, each normalized with
  its own statistics; nothing is learned.
- `statistics_gap`: how far the running statistics of each layer are from the statistics of a batch.
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax.traverse_util import flatten_dict

EPSILON = 1e-5  # the default of BatchNorm
CHUNK = 512  # images per call, and the largest batch size for batch statistics

Variables = Mapping[str, Any]
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


class Gap(NamedTuple):
    """The gap between one layer's running statistics and those of a batch, over its channels."""

    layer: str
    mean: float  # root mean square of (batch mean - running mean), in running standard deviations
    std: float  # mean factor between the batch's and the running standard deviation; 1 if equal


def accuracy_with_running_statistics(
    model: nn.Module,
    variables: Variables,
    images: Images,
    labels: Labels,
    *,
    mirrored: bool = False,
) -> float:
    """Fraction of `images` classified correctly in evaluation mode; independent of the batch size.

    With `mirrored`, the logits are averages over an image and its mirror image.
    """
    correct = sum(
        int(_correct_by_running_statistics(model, variables, *chunk, mirrored=mirrored))
        for chunk in _chunks(images, labels)
    )
    return correct / len(labels)


def accuracy_with_batch_statistics(
    model: nn.Module, variables: Variables, images: Images, labels: Labels, batch_size: int
) -> float:
    """Fraction of `images` classified correctly in training mode, in batches of `batch_size`.

    `batch_size` must divide 512. If the last batch has fewer images, it is padded and masked, so the
    padding does not enter the statistics.
    """
    if CHUNK % batch_size:
        raise ValueError(f"batch_size must divide {CHUNK}; got {batch_size}; try 2, 8, 32 or 512.")
    correct = sum(
        int(_correct_by_batch_statistics(model, variables, *chunk, batch_size=batch_size))
        for chunk in _chunks(images, labels)
    )
    return correct / len(labels)


def statistics_gap(
    model: nn.Module, variables: Variables, images: Images, labels: Labels
) -> list[Gap]:
    """Returns the gap of every batch norm in `model`, on the first 512 of `images`."""
    if not has_batch_norm(variables):
        return []
    chunk, _, counted = next(_chunks(images, labels))
    batch = _statistics_of(_forgetful(model), variables, chunk, counted)
    running = flatten_dict(variables["batch_stats"], sep="/")
    batch = flatten_dict(batch, sep="/")
    gaps = []
    for layer in sorted({name.rpartition("/")[0] for name in running}, key=_natural):
        (mean, var), (batch_mean, batch_var) = (
            (np.asarray(stats[f"{layer}/mean"]), np.asarray(stats[f"{layer}/var"]))
            for stats in (running, batch)
        )
        std, batch_std = np.sqrt(var + EPSILON), np.sqrt(batch_var + EPSILON)
        distance = np.sqrt(np.mean(((batch_mean - mean) / std) ** 2))
        factor = np.exp(np.mean(np.abs(np.log(batch_std / std))))
        gaps.append(Gap(layer.removesuffix("/BatchNorm_0"), float(distance), float(factor)))
    return gaps


def has_batch_norm(variables: Variables) -> bool:
    """Whether the model has a batch norm, and so two kinds of statistics to compare."""
    paths = flatten_dict(variables.get("batch_stats", {}))
    return any(name.startswith("BatchNorm_") for path in paths for name in path)


def scaled(images: jax.Array) -> jax.Array:
    """Scales uint8 pixels to about [-2, 2], the input of the network."""
    return images.astype(jnp.float32) / 64 - 2


@partial(jax.jit, static_argnames=("model", "mirrored"))
def _correct_by_running_statistics(
    model: Any,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    counted: jax.Array,
    *,
    mirrored: bool,
) -> jax.Array:
    logits = model.apply(variables, scaled(images), train=False)
    if mirrored:
        logits += model.apply(variables, scaled(images[:, :, ::-1]), train=False)
    return ((logits.argmax(-1) == labels) & counted).sum()


@partial(jax.jit, static_argnames=("model", "batch_size"))
def _correct_by_batch_statistics(
    model: Any,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    counted: jax.Array,
    *,
    batch_size: int,
) -> jax.Array:
    def classify(images: jax.Array, counted: jax.Array) -> jax.Array:
        mask = counted[:, None, None, None]
        logits, _ = model.apply(variables, images, train=True, mask=mask, mutable=["batch_stats"])
        return logits.argmax(-1)

    # vmap over many small batches, each with its own statistics.
    batches = scaled(images).reshape(-1, batch_size, *images.shape[1:])
    answers = jax.vmap(classify)(batches, counted.reshape(-1, batch_size)).reshape(-1)
    return ((answers == labels) & counted).sum()


@partial(jax.jit, static_argnames="forgetful")
def _statistics_of(
    forgetful: Any, variables: Variables, images: jax.Array, counted: jax.Array
) -> Variables:
    """Statistics of this batch in every layer: the running statistics of a model with momentum 0."""
    mask = counted[:, None, None, None]
    _, updated = forgetful.apply(
        variables, scaled(images), train=True, mask=mask, mutable=["batch_stats"]
    )
    return updated["batch_stats"]


@cache
def _forgetful(model: Any) -> nn.Module:
    """Returns `model` with momentum 0. The result is cached, so jit recognizes it."""
    return model.clone(norm=partial(model.norm, momentum=0.0))


def _chunks(
    images: Images, labels: Labels
) -> Iterator[tuple[Images, Labels, npt.NDArray[np.bool_]]]:
    """Yields chunks of 512 images, labels and a mask that excludes the padding of the last chunk."""
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        missing = CHUNK - len(labels[part])
        counted = np.arange(CHUNK) < CHUNK - missing
        yield (
            np.pad(images[part], [(0, missing)] + [(0, 0)] * 3),
            np.pad(labels[part], (0, missing)),
            counted,
        )


def _natural(layer: str) -> list[tuple[str, int]]:
    """Sort key that puts NormalizedConv_10 after NormalizedConv_9."""
    parts = [part.rpartition("_") for part in layer.split("/")]
    return [(name, int(number)) for name, _, number in parts]
