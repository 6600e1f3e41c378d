"""Measures what limits the training step of the CIFAR-10 example: convolutions alone, and modified steps.

    python -m benchmarks.cifar_step

Images are random; only time is measured.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from examples import cifar10, models
from examples.data import CLASSES, Dataset
from examples.runs import Run

CONVOLUTIONS = ((64, 16, 64), (128, 16, 32), (128, 8, 128), (24, 32, 24))  # in, pixels, out
ROUNDS, STEPS = 7, 12


def window_pool(x: jax.Array) -> jax.Array:
    """Flax's 2x2 max pool."""
    return nn.max_pool(x, (2, 2), (2, 2))


def milliseconds(call: Callable[[], Any]) -> float:
    """The median time of a call."""
    jax.block_until_ready(call())
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def convolution(channels: int, pixels: int, features: int) -> list[float]:
    """GFLOP/s of a 3x3 convolution at batch size 128: forward, gradient of x, gradient of the kernel."""
    x = jax.random.normal(jax.random.key(0), (128, pixels, pixels, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, features))
    dy = jax.random.normal(jax.random.key(2), (128, pixels, pixels, features))

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    programs = (
        jax.jit(convolve),
        jax.jit(lambda x, kernel: jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)),
        jax.jit(lambda x, kernel: jax.vjp(lambda k: convolve(x, k), kernel)[1](dy)),
    )
    work = 2 * 128 * pixels**2 * 9 * channels * features
    return [work / milliseconds(lambda p=p: p(x, kernel)) / 1e6 for p in programs]


def stepper(settings: cifar10.Settings, norm: models.Norm | None = None) -> Callable[[], float]:
    """Returns a function that trains for some steps and returns the images per second.

    ``norm`` replaces the norm of the settings.
    """
    images = np.random.default_rng(0).integers(0, 256, (2560, 32, 32, 3), np.uint8)
    labels = np.arange(2560, dtype=np.int32) % 10
    dataset = Dataset("random", images, labels, images, labels, CLASSES)
    model = cifar10.build_model(settings, 10)
    model = model if norm is None else model.clone(norm=norm)
    state = cifar10.create_state(model, settings, images, 1000)
    training = cifar10.Training(settings, dataset, model, Run(Path(), ""), *cifar10.shardings(1))
    step = cifar10.make_train_step(settings, 10)
    batches = list(cifar10.batches(training, 0, 0))[:STEPS]
    state = jax.block_until_ready(step(jax.device_put(state, training.everywhere), 0, *batches[0]))

    def train() -> float:
        nonlocal state
        start = time.perf_counter()
        for batch in batches:
            state = step(state, 0, *batch)
        jax.block_until_ready(state)
        return settings.batch_size * len(batches) / (time.perf_counter() - start)

    return train


def main() -> None:
    """Prints both tables in Markdown."""
    print("| 3x3 convolution | forward | gradient of x | gradient of the kernel |")
    print("|---|---|---|---|")
    for channels, pixels, features in CONVOLUTIONS:
        speeds = " | ".join(f"{s:.0f} GFLOP/s" for s in convolution(channels, pixels, features))
        print(f"| {channels} to {features}, {pixels}x{pixels} | {speeds} |", flush=True)

    quick, full = cifar10.PRESETS["quick"], cifar10.PRESETS["full"]
    replace = cifar10.replace
    trains = {
        "quick": stepper(quick),
        "quick, with Flax's BatchNorm": stepper(
            quick, partial(nn.BatchNorm, momentum=quick.momentum)
        ),
        "quick, without batch norm": stepper(replace(quick, norm="none")),
        "quick, batches of 128": stepper(replace(quick, batch_size=128)),
        "quick, batches of 256": stepper(replace(quick, batch_size=256)),
        "quick, without augmentation": stepper(replace(quick, crop=0, flip=False)),
        "full": stepper(full),
        "ResNet-20": stepper(replace(quick, model="resnet20")),
    }
    pool, models.max_pool = models.max_pool, window_pool
    trains["quick, max pool as a window reduction"] = stepper(quick)
    models.max_pool = pool
    timed: dict[str, list[float]] = {name: [] for name in trains}
    for _ in range(ROUNDS):
        for name, train in trains.items():
            timed[name].append(train())
    print("\n| training step | images a second | of quick's speed |\n|---|---|---|")
    base = timed["quick"]
    for name, measured in timed.items():
        ratio = statistics.median(v / b for v, b in zip(measured, base, strict=True))
        print(f"| {name} | {statistics.median(measured):,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
