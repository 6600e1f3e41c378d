"""Measures what limits the training step of the CIFAR-10 example: convolutions alone, and modified steps.

    python -m benchmarks.cifar_step [--write]
    python -m benchmarks.cifar_step --readme    # write the stored figures to benchmarks/README.md

Images are random; only time is measured. The allocator is glibc's default, as in the example.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import flax.linen as nn
import jax
import numpy as np
import tyro

from benchmarks import measure, results
from benchmarks.environment import Allocator, run_under
from benchmarks.tables import NOTHING, markdown
from examples import cifar10, models
from examples.cifar10 import Settings
from examples.data import CLASSES, Dataset
from examples.environment import machine_used, processor_used, versions_used
from examples.runs import Run

ALLOCATOR: Allocator = "default"
CONVOLUTIONS = ((64, 16, 64), (128, 16, 32), (128, 8, 128), (24, 32, 24))  # in, pixels, out
PASSES = ("forward", "gradient of x", "gradient of the kernel")
BATCH, IMAGES = 128, 2560


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    quick: bool = False
    """Take two rounds, with one convolution and the step of a small network."""
    rounds: int = 15
    """Rounds in which everything is timed."""
    write: bool = False
    """Store the figures in benchmarks/results."""
    readme: bool = False
    """Measure nothing; write the tables of the stored figures to benchmarks/README.md."""


def window_pool(x: jax.Array) -> jax.Array:
    """Flax's 2x2 max pool."""
    return nn.max_pool(x, (2, 2), (2, 2))


def convolution(channels: int, pixels: int, features: int) -> dict[str, measure.Program]:
    """A 3x3 convolution, forward and backward."""
    x = jax.random.normal(jax.random.key(0), (BATCH, pixels, pixels, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, features))
    dy = jax.random.normal(jax.random.key(2), (BATCH, pixels, pixels, features))

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    calls = (
        jax.jit(convolve),
        jax.jit(lambda x, kernel: jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)),
        jax.jit(lambda x, kernel: jax.vjp(lambda k: convolve(x, k), kernel)[1](dy)),
    )
    programs = (measure.Program(measure.repeated(partial(call, x, kernel))) for call in calls)
    return dict(zip(PASSES, programs, strict=True))


def training(
    settings: Settings, norm: models.Norm | None = None, pool: Any = models.max_pool
) -> measure.Program:
    """A program that keeps training, with the images of a step in `counted`.

    ``norm`` replaces the norm of the settings, and ``pool`` the max pool of the networks.
    """
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    labels = np.arange(IMAGES, dtype=np.int32) % 10
    dataset = Dataset("random", images, labels, images, labels, CLASSES)
    model = cifar10.build_model(settings, 10)
    model = model if norm is None else model.clone(norm=norm)
    loop = cifar10.Training(settings, dataset, model, Run(Path(), ""), *cifar10.shardings(1))
    batches = cycle(list(cifar10.batches(loop, 0, 0)))
    step = cifar10.make_train_step(settings, 10)
    with patch.object(models, "max_pool", pool):  # the first step is traced here
        state = cifar10.create_state(model, settings, images, 1000)
        state = step(jax.device_put(state, loop.everywhere), 0, *next(batches))

    def run(times: int) -> Any:
        nonlocal state
        for _ in range(times):
            state = step(state, 0, *next(batches))
        return jax.block_until_ready(state)

    return measure.Program(run, counted={"images": settings.batch_size})


QUICK = cifar10.PRESETS["quick"]
STEPS: dict[str, Callable[[], measure.Program]] = {
    "quick": partial(training, QUICK),
    "quick, with Flax's BatchNorm": partial(
        training, QUICK, norm=partial(nn.BatchNorm, momentum=QUICK.momentum)
    ),
    "quick, without batch norm": partial(training, replace(QUICK, norm="none")),
    "quick, batches of 128": partial(training, replace(QUICK, batch_size=128)),
    "quick, batches of 256": partial(training, replace(QUICK, batch_size=256)),
    "quick, without augmentation": partial(training, replace(QUICK, crop=0, flip=False)),
    "full": partial(training, cifar10.PRESETS["full"]),
    "ResNet-20": partial(training, replace(QUICK, model="resnet20")),
    "quick, max pool as a window reduction": partial(training, QUICK, pool=window_pool),
}
SMALL = replace(QUICK, widths=(8,), depth=1, stem_width=8, batch_size=16)


def measured(options: Options) -> dict[str, Any]:
    """Returns the speeds of the convolutions, and a row for each step."""
    shapes, steps, rounds = CONVOLUTIONS, STEPS, options.rounds
    if options.quick:
        shapes, steps, rounds = shapes[:1], {"a small network": partial(training, SMALL)}, 2
    return {
        "machine": ", ".join(filter(None, (machine_used(), processor_used()))),
        "versions": versions_used(),
        "rounds": rounds,
        "convolutions": [speeds(*shape, rounds) for shape in shapes],
        "rows": rows({name: program() for name, program in steps.items()}, rounds),
    }


def speeds(channels: int, pixels: int, features: int, rounds: int) -> dict[str, Any]:
    """GFLOP/s of a convolution, forward and backward."""
    work = 2 * BATCH * pixels**2 * 9 * channels * features
    times = measure.in_turns(convolution(channels, pixels, features), rounds)
    found = {name: work / 1e9 / float(np.median(took)) for name, took in times.items()}
    return {"channels": channels, "pixels": pixels, "features": features, **found}


def rows(steps: dict[str, measure.Program], rounds: int) -> list[dict[str, Any]]:
    """Images a second of each step, and quartiles of the ratio to the first."""
    times = measure.in_turns(steps, rounds)
    speed = {name: program.counted["images"] / times[name] for name, program in steps.items()}
    first = next(iter(speed.values()))
    return [
        {
            "name": name,
            "allocator": ALLOCATOR,
            "images_a_second": float(np.median(of_step)),
            "of_first": measure.quartiles(of_step / first),
        }
        for name, of_step in speed.items()
    ]


def tables(found: dict[str, Any]) -> str:
    """Returns both tables of one machine and set of versions in Markdown."""
    convolutions = (
        [
            "{channels} to {features}, {pixels}x{pixels}".format(**row),
            *(f"{row[name]:.0f}" for name in PASSES),
        ]
        for row in found["convolutions"]
    )
    steps = (
        [
            row["name"],
            f"{row['images_a_second']:,.0f}",
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*row["of_first"]),
        ]
        for row in found["rows"]
    )
    ratio = f"speed / {found['rows'][0]['name']} (quartiles)"
    return "\n\n".join(
        (
            f"{found['machine']}; {found['versions']}; {found['rounds']} rounds",
            markdown(["3x3 convolution, GFLOP/s", *PASSES], convolutions),
            markdown(["training step", "images a second", ratio], steps),
        )
    )


def section(stored: list[dict[str, Any]]) -> str:
    """Returns the section of the page with all stored figures."""
    return "\n\n".join(map(tables, stored)) or NOTHING


def main(options: Options) -> None:
    """Measures, prints the tables, and stores the figures if requested."""
    if options.readme:
        results.into_page("cifar_step", section, results.README)
        return
    found = measured(options)
    print(tables(found))
    if options.write:
        results.keep("cifar_step", found)


if __name__ == "__main__":
    chosen = tyro.cli(
        Options,
        prog="python -m benchmarks.cifar_step",
        description=(__doc__ or "").split("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run_under(ALLOCATOR)
    main(chosen)
