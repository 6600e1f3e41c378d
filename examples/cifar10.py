"""Train a small CNN with batch norm on CIFAR-10, and compare its running statistics with batch statistics.

    python -m examples.cifar10 train                     # quick: minutes on a laptop
    python -m examples.cifar10 train --preset full       # 91 %, about an hour on two cores
    python -m examples.cifar10 eval --name cifar10-quick

Read it from the top: batch norm affects only the training state, the training step and the evaluation of a
Flax program. The networks are in models.py, the measurements in measure.py.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxnorm import linen as jnl, tools

from . import data, measure, report
from .models import CNN, Place, ResNet20
from .runs import Run, RunError, free_name, interruptible
from .whitening import whitening_convolution

console = Console()
BATCH_SIZES = (512, 32, 8, 2)
STEM = "Conv_0"  # the name of the first convolution
MUON_LR = 0.2  # Muon's learning rate relative to that of SGD
AS_MATRIX = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
# The norm of activations to combine a norm of weights with.
PARTNERS = {"weight_standardization": "group"}
WITH_ACTIVATION = (
    *("evo_b0", "evo_b1", "evo_b2", "evo_s0", "evo_s1", "evo_s2"),
    "filter_response",
)


# --- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """All settings of a training run."""

    preset: Literal["quick", "full"] = "quick"
    """Defaults of all other settings: quick takes minutes on two cores, full about an hour."""
    data: Literal["auto", "cifar10", "digits"] = "auto"
    """CIFAR-10, scikit-learn's 8x8 digits, or (auto) CIFAR-10 if it is available and otherwise digits."""
    model: Literal["cnn", "resnet20"] = "cnn"
    """Network to train."""
    widths: tuple[int, ...] = (64, 64, 128)
    """Channels of each group of convolutions (cnn only)."""
    depth: int = 2
    """Convolutions in each group (cnn only)."""
    stem_width: int = 32
    """Channels of the first convolution (cnn only)."""
    stem_stride: int = 2
    """Stride of the first convolution: 2 computes on 16x16 pixels, 1 on 32x32 (cnn only)."""
    stem: Literal["trained", "whitened"] = "trained"
    """Train the first convolution, or compute one that whitens patches of the training images (cnn only)."""
    norm: jnl.NormName = "batch"
    """Norm after each convolution, or of its weights (weight standardization is followed by group norm).
    With none, use a smaller --lr."""
    place: Place = "before"
    """Whether the norm comes before or after the activation."""
    momentum: float = 0.9
    """Weight of the previous running statistics in each update (PyTorch's momentum is 1 minus this)."""
    epochs: int | None = None
    """Passes over the training images. If unset: 4 for quick, 20 for full; on digits, 20 and 60."""
    batch_size: int = 64
    """Images per training batch, over all devices."""
    lr: float = 0.1
    """Peak learning rate."""
    bias_lr: float = 1.0
    """Learning rate of biases, relative to that of everything else."""
    schedule: Literal["onecycle", "cosine"] = "onecycle"
    """Learning-rate schedule: linear up and down (onecycle), or warmup and cosine decay (cosine)."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """SGD for everything, or Muon for the kernels of convolutions and SGD for everything else."""
    sgd_momentum: float = 0.9
    """Momentum of SGD (Nesterov)."""
    weight_decay: float = 5e-4
    """Weight decay of the kernels; scales and biases are not decayed."""
    label_smoothing: float = 0.1
    """Fraction of the target that is spread over all classes."""
    crop: int = 2
    """Largest random shift of a training image in each direction, in pixels; 0 for none."""
    flip: bool = True
    """Mirror a random half of the training images (never digits)."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """dtype of the activations. Parameters are float32; statistics are at least float32."""
    seed: int = 0
    """Random seed for the initialization, the order of the images and their augmentation."""
    devices: int = 1
    """Train data-parallel on this many devices; on a CPU, they are virtual."""
    eval_images: int = 2048
    """Held-out images to evaluate after each epoch; 0 means all. The final evaluation uses all of them."""


PRESETS = {
    "quick": Settings(),
    "full": Settings(
        preset="full",
        stem_width=24,
        stem_stride=1,
        stem="whitened",
        widths=(32, 128, 128),
        lr=0.2,
        bias_lr=8,
        optimizer="muon",
        label_smoothing=0.2,
    ),
}
EPOCHS = {
    ("quick", "cifar10"): 4,
    ("full", "cifar10"): 20,
    ("quick", "digits"): 20,
    ("full", "digits"): 60,
}


# --- state and steps: the parts that batch norm affects ------------------------------------------


class TrainState(tools.TrainState):
    """Parameters, optimizer state and running statistics.

    Running statistics are not parameters: they have no gradients, and the optimizer does not update them.
    Each training step passes them to the model and gets the updated ones back.
    """

    totals: Any = None  # sums over this epoch so far: loss times images, correct images, images


def create_state(model: nn.Module, settings: Settings, images: Any, steps: int) -> TrainState:
    """Returns the initial parameters, running statistics (mean 0, variance 1) and optimizer state."""
    example = measure.scaled(jnp.asarray(images[:1]))
    state = initial_state(model, optimizer(settings, steps))(settings.seed, example)
    return with_stem(state, settings, images)


def with_stem(state: TrainState, settings: Settings, images: Any) -> TrainState:
    """Replaces the first convolution if `settings` ask for one that whitens."""
    if not has_whitened_stem(settings):
        return state
    params: Any = state.params
    size, _, _, features = params[STEM]["kernel"].shape
    some = np.asarray(measure.scaled(jnp.asarray(images[:500])))
    kernel, bias = whitening_convolution(some, size, features)
    return state.replace(params={**params, STEM: {"kernel": kernel, "bias": bias}})


def has_whitened_stem(settings: Settings) -> bool:
    """Whether the first convolution is not trained."""
    return settings.stem == "whitened" and settings.model == "cnn"


def initial_state(
    model: nn.Module, tx: optax.GradientTransformation
) -> Callable[[int, jax.Array], TrainState]:
    """Returns a function that creates the initial training state from a seed and images."""

    @jax.jit
    def state_of(seed: int, images: jax.Array) -> TrainState:
        variables: Any = model.init(jax.random.key(seed), images, train=False)
        return TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=tx,
            batch_stats=variables.get("batch_stats", {}),  # empty if no layer has any
            totals=jnp.zeros(3),
        )

    return state_of


def make_train_step(settings: Settings, classes: int) -> Callable[..., TrainState]:
    """Returns the training step, a function from a state, a seed and a batch to the next state.

    The seed is for the augmentation. For a padded batch, `counted` is True for the images to include.
    """

    @partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState,
        seed: int,
        images: jax.Array,
        labels: jax.Array,
        counted: jax.Array | None = None,
    ) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed + 1), state.step)
        images = measure.scaled(augment(key, images, settings.crop, settings.flip))
        mask = None if counted is None else counted[:, None, None, None]

        def loss_of(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
            # Training mode normalizes with the statistics of this batch and returns the updated
            # running statistics. They are an auxiliary output: the loss does not depend on them.
            logits, updated = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mask=mask,
                mutable=["batch_stats"],
            )
            targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), settings.label_smoothing)
            loss = optax.softmax_cross_entropy(logits, targets).mean(where=counted)
            return loss, (updated.get("batch_stats", {}), logits)

        (loss, (batch_stats, logits)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        right = (logits.argmax(-1) == labels).sum(where=counted)
        size = len(labels) if counted is None else counted.sum()
        return state.apply_gradients(
            grads=gradients,
            batch_stats=batch_stats,
            totals=state.totals + jnp.stack([loss * size, right, size]),
        )

    return train_step


def evaluate(
    model: nn.Module, state: TrainState, images: Any, labels: Any, *, flip: bool = False
) -> dict[str, Any]:
    """Returns accuracy with running and batch statistics (several batch sizes), and the gap per layer.

    With `flip`, also that of the average over each image and its mirror image.
    """
    variables = jax.device_get(state.variables)
    compares = measure.has_batch_norm(variables)
    given = model, variables, images, labels
    by_batch = partial(measure.accuracy_with_batch_statistics, *given)
    running = measure.accuracy_with_running_statistics
    return {
        "images": len(labels),
        "running": running(*given),
        **({"mirrored": running(*given, mirrored=True)} if flip else {}),
        "batch": {str(min(size, len(labels))): by_batch(size) for size in BATCH_SIZES}
        if compares
        else {},
        "gap": [gap._asdict() for gap in measure.statistics_gap(*given)],
    }


def augment(key: jax.Array, images: jax.Array, crop: int, flip: bool) -> jax.Array:
    """Mirrors half of the images, and shifts each by up to `crop` pixels with reflection at the edges."""
    flip_key, crop_key = jax.random.split(key)
    n, height, width, _ = images.shape
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (n, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if crop:
        padded = jnp.pad(images, [(0, 0), (crop, crop), (crop, crop), (0, 0)], mode="reflect")
        down, right = jax.random.randint(crop_key, (2, n, 1), 0, 2 * crop + 1)
        rows, columns = down + jnp.arange(height)[None], right + jnp.arange(width)[None]
        images = padded[jnp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return images


def optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, and weight decay for kernels only; or Muon where `settings` say so."""

    def schedule(peak: float) -> optax.Schedule:
        if settings.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps)
        rise = max(1, steps // 5)
        up = optax.linear_schedule(0.2 * peak, peak, rise)
        return optax.join_schedules(
            [up, optax.linear_schedule(peak, 0.01 * peak, steps - rise)], [rise]
        )

    def way(path: tuple[Any, ...], param: jax.Array) -> str:
        if has_whitened_stem(settings) and path[0].key == STEM:
            return "none"
        if path[-1].key == "bias":
            return "bias"
        return settings.optimizer if param.ndim == 4 else "sgd"

    def sgd(peak: float) -> optax.GradientTransformation:
        return optax.sgd(schedule(peak), settings.sgd_momentum, nesterov=True)

    ways: dict[Hashable, optax.GradientTransformation] = {
        "sgd": optax.chain(
            optax.add_decayed_weights(
                settings.weight_decay, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
            ),
            sgd(settings.lr),
        ),
        "bias": sgd(settings.bias_lr * settings.lr),
        # Kernels shrink as fast as with SGD: momentum multiplies its decay by 1 / (1 - momentum).
        "muon": optax.chain(
            optax.contrib.scale_by_muon(
                beta=0.8, weight_dimension_numbers=partial(jax.tree.map, lambda _: AS_MATRIX)
            ),
            optax.add_decayed_weights(
                settings.weight_decay / (1 - settings.sgd_momentum) / MUON_LR
            ),
            optax.scale_by_learning_rate(schedule(MUON_LR * settings.lr)),
        ),
        "none": optax.set_to_zero(),
    }
    return optax.partition(ways, partial(jax.tree.map_with_path, way))


def fields_of(name: str) -> set[str]:
    """The fields of a norm's class."""
    norm: Any = jnl.get_norm(name)
    return {field.name for field in dataclasses.fields(norm.func)}


def build_model(settings: Settings, classes: int) -> nn.Module:
    """Builds the network that `settings` describe."""
    if settings.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    dtype = jnp.dtype(settings.dtype)
    of_weights = "layer_instance" in fields_of(settings.norm)
    name = settings.norm if not of_weights else PARTNERS.get(settings.norm, "none")
    fields = fields_of(name)
    given = {"dtype": dtype, "momentum": settings.momentum, "num_groups": 8}
    options = {option: value for option, value in given.items() if option in fields}
    shared: dict[str, Any] = {
        "norm": jnl.get_norm(name, **options),
        "wrap": jnl.get_norm(settings.norm) if of_weights else None,
        "activation": None if name in WITH_ACTIVATION else nn.relu,
        "bias": "use_bias" not in fields and name != "act",
        "place": settings.place,
        "dtype": dtype,
        "classes": classes,
    }
    if settings.model == "resnet20":
        return ResNet20(**shared)
    return CNN(settings.widths, settings.depth, settings.stem_width, settings.stem_stride, **shared)


# --- the loop ------------------------------------------------------------------------------------


class Training(NamedTuple):
    """Everything that the training loop needs, except the state."""

    settings: Settings
    dataset: data.Dataset
    model: nn.Module
    run: Run
    split: NamedSharding  # for batches: one part on each device
    everywhere: NamedSharding  # for the state: replicated on all devices

    @property
    def steps_per_epoch(self) -> int:
        """Full batches per epoch; the images left over differ from epoch to epoch."""
        return len(self.dataset.train_labels) // self.settings.batch_size


def fit(training: Training, state: TrainState, metrics: list[dict[str, Any]]) -> TrainState | None:
    """Trains from `state` to the last epoch and saves after each; returns None if interrupted."""
    train_step = make_train_step(training.settings, len(training.dataset.classes))
    epochs = training.settings.epochs or 0
    with interruptible() as interruption, progress_bar() as bar:
        for epoch in range(int(state.step) // training.steps_per_epoch, epochs):
            task = bar.add_task(
                f"epoch {epoch + 1}/{epochs}", total=training.steps_per_epoch, note=""
            )
            start, first = time.perf_counter(), int(state.step) % training.steps_per_epoch
            bar.update(task, completed=first)
            for i, batch in enumerate(batches(training, epoch, first), first + 1):
                state = train_step(state, training.settings.seed, *batch)
                if i % 10 == 0 or i == training.steps_per_epoch:
                    loss, accuracy = epoch_averages(state)  # waits for the step
                    speed = (
                        (i - first) * training.settings.batch_size / (time.perf_counter() - start)
                    )
                    note = f"loss {loss:.3f}  accuracy {accuracy:.1%}  {speed:,.0f} images/s"
                    bar.update(task, completed=i, note=note)
                if interruption.asked and i < training.steps_per_epoch:
                    training.run.save(state)
                    return None
            bar.remove_task(task)
            seconds = time.perf_counter() - start
            metrics.append(measured_epoch(training, state, epoch + 1, seconds, first))
            state = state.replace(totals=jnp.zeros_like(state.totals))
            # Write the metrics before the checkpoint: if the process is killed between the two, the
            # epoch is repeated and its line is rewritten.
            training.run.write_metrics(metrics)
            training.run.save(state)
            if interruption.asked and epoch + 1 < epochs:
                return None
    return state


def batches(training: Training, epoch: int, first: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields the batches of one epoch from batch `first` on, in an order set by the seed and the epoch."""
    dataset, size = training.dataset, training.settings.batch_size
    order = np.random.default_rng((training.settings.seed, epoch)).permutation(
        len(dataset.train_labels)
    )
    for i in range(first, training.steps_per_epoch):
        chosen = order[i * size : (i + 1) * size]
        batch = dataset.train_images[chosen], dataset.train_labels[chosen]
        yield jax.device_put(batch, training.split)


def epoch_averages(state: TrainState) -> tuple[float, float]:
    """Returns the mean loss and accuracy of this epoch's training batches so far."""
    loss, right, images = (float(total) for total in state.totals)
    return loss / images, right / images


def measured_epoch(
    training: Training, state: TrainState, epoch: int, seconds: float, first: int
) -> dict[str, Any]:
    """Evaluates the state after an epoch, prints the result and returns a line for metrics.jsonl."""
    loss, accuracy = epoch_averages(state)
    images = training.settings.eval_images or len(training.dataset.test_labels)
    held_out = training.dataset.test_images[:images], training.dataset.test_labels[:images]
    measured = evaluate(training.model, state, *held_out, flip=training.settings.flip)
    by_batch = "  ".join(f"{share:.1%} ({size})" for size, share in measured["batch"].items())
    console.print(
        f"epoch {epoch:2}  loss {loss:.3f}  train {accuracy:.1%}  held out {measured['running']:.1%}"
        + (f"  with statistics of batches: {by_batch}" if by_batch else ""),
        soft_wrap=True,
        highlight=False,
    )
    trained = (training.steps_per_epoch - first) * training.settings.batch_size
    return {
        "epoch": epoch,
        "step": int(state.step),
        "train_loss": loss,
        "train_accuracy": accuracy,
        "seconds": seconds,  # since resuming, if training was resumed in this epoch
        "images_per_second": trained / seconds,
        **measured,
    }


def progress_bar() -> Progress:
    """A progress bar with a note on the epoch; disabled if the output is not a terminal."""
    columns = (
        "{task.description}",
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def finish(training: Training, state: TrainState, metrics: list[dict[str, Any]]) -> None:
    """Evaluates on all held-out images, prints the tables and draws the plots."""
    dataset, folder = training.dataset, training.run.folder
    held_out = dataset.test_images, dataset.test_labels
    measured = evaluate(training.model, state, *held_out, flip=training.settings.flip)
    training.run.write("results.json", json.dumps(measured, indent=2))
    console.print(report.accuracy_table(measured))
    if measured["gap"]:
        console.print(report.gap_table(measured))
        console.print(
            "jaxnorm.tools.examine compares the statistics of any model and names the cause. See docs/ for "
            "recalibrate (new statistics), freeze (fine-tuning), fold (deployment) and swap (another norm).",
            soft_wrap=True,
            highlight=False,
        )
    norm = training.settings.norm.replace("_", " ")
    kind = norm if norm == "weight standardization" else f"{norm} norm".replace("none", "no")
    title = f"{training.settings.model.upper()} with {kind} on {dataset.name}"
    if metrics:  # at least one epoch is complete
        report.draw(metrics, measured, title, folder)
    console.print(
        f"Plots, metrics and checkpoint are in {folder}/", soft_wrap=True, highlight=False
    )


# --- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Train:
    """Train a network; write metrics, plots and checkpoints to runs/NAME/."""

    settings: Settings
    name: str | None = None
    """Name of the run's folder. If unset: the data set and the preset."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    data_dir: Path | None = None
    """Folder that contains cifar-10-batches-bin/. If unset: $JAXNORM_DATA, or else a one-time download."""
    resume: bool = False
    """Resume run NAME from its last checkpoint with its settings; results match an uninterrupted run."""

    def run(self) -> int:
        """Trains or resumes a run; returns the exit status."""
        if self.resume:
            if not self.name:
                raise RunError(
                    f"--resume needs --name NAME, the name of the run's folder in {self.runs}/."
                )
            run = Run(self.runs, self.name)
            training, state = prepare(resumed(self.settings, run), run, self.data_dir)
            if run.has_checkpoint():  # otherwise it stopped before the first: start over
                state = jax.device_put(run.restore(state), training.everywhere)
            done = int(state.step) // training.steps_per_epoch
            metrics = run.metrics(done)[:done]
            console.print(f"Resuming {run.folder}/ after {done} epochs, with its own settings.")
        else:
            dataset = data.load(self.settings.data, self.data_dir)
            settings = completed(self.settings, dataset)
            run = Run(
                self.runs, self.name or free_name(self.runs, f"{dataset.name}-{settings.preset}")
            )
            training, state = prepare(settings, run, self.data_dir)
            run.start(dataclasses.asdict(settings))
            metrics = []
        trained = fit(training, state, metrics)
        if trained is None:
            again = (
                f"python -m examples.cifar10 train --runs {self.runs} --name {run.name} --resume"
            )
            console.print(
                f"Interrupted; a checkpoint was saved. Resume with\n  {again}", soft_wrap=True
            )
            return 130
        seconds = sum(epoch["seconds"] for epoch in metrics)
        console.print(f"{len(metrics)} epochs took {seconds:,.0f} s of training.", highlight=False)
        finish(training, trained, metrics)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained network again from its last checkpoint."""

    name: str
    """Name of the run's folder."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    data_dir: Path | None = None
    """Folder that contains cifar-10-batches-bin/. If unset: $JAXNORM_DATA, or else a one-time download."""

    def run(self) -> int:
        """Evaluates the network; returns the exit status."""
        run = Run(self.runs, self.name)
        training, state = prepare(resumed(None, run), run, self.data_dir)
        state = run.restore(state)
        finish(training, state, run.metrics(int(state.step) // training.steps_per_epoch))
        return 0


def completed(settings: Settings, dataset: data.Dataset) -> Settings:
    """Returns `settings` with the values that depend on the data set filled in."""
    if settings.epochs is None:
        settings = replace(settings, epochs=EPOCHS[settings.preset, dataset.name])
    settings = replace(settings, data=dataset.name)
    if dataset.name == "digits":  # a mirrored digit is not a digit; 2 of 8 pixels are too many
        settings = replace(settings, flip=False, crop=min(settings.crop, 1))
    return settings


def resumed(given: Settings | None, run: Run) -> Settings:
    """Returns the settings of `run`.

    Raises:
        RunError: If there is no such run, its file is damaged, or a setting in `given` differs from both
            the run's value and the default of the given preset.
    """
    try:
        stored = run.config()
        settings = Settings(**{**stored, "widths": tuple(stored["widths"])})
    except (TypeError, KeyError) as error:
        raise run.damaged("config.json", error) from error
    if given is None:
        return settings
    for field in dataclasses.fields(Settings):
        value, kept = getattr(given, field.name), getattr(settings, field.name)
        if value not in (kept, getattr(PRESETS[given.preset], field.name)):
            raise RunError(
                f"a resumed run must keep its settings; {run.folder} has {field.name}={kept}, and "
                f"{value} was given. Omit the option, or start a new run."
            )
    return settings


def prepare(settings: Settings, run: Run, data_dir: Path | None) -> tuple[Training, TrainState]:
    """Loads the data, builds the network and places the initial state on the devices.

    Raises:
        RunError: If a number is out of range, or the batch cannot be split over the devices.
    """
    if min(settings.epochs or 0, settings.batch_size, settings.devices) < 1:
        raise RunError(
            f"epochs, batch_size and devices must be 1 or more; got epochs={settings.epochs}, "
            f"batch_size={settings.batch_size}, devices={settings.devices}."
        )
    if not 0 <= settings.momentum <= 1:
        raise RunError(
            f"momentum must lie in [0, 1]; got {settings.momentum}. It is the weight of the previous "
            f"running statistics; a typical value is 0.9."
        )
    dataset = data.load(settings.data, data_dir)
    if settings.batch_size % settings.devices or settings.batch_size > len(dataset.train_labels):
        raise RunError(
            f"batch_size must be a multiple of devices and at most the {len(dataset.train_labels):,} "
            f"training images; got batch_size={settings.batch_size}, devices={settings.devices}. "
            f"Try --batch-size {64 * settings.devices}."
        )
    split, everywhere = shardings(settings.devices)
    model = build_model(settings, len(dataset.classes))
    training = Training(settings, dataset, model, run, split, everywhere)
    steps = training.steps_per_epoch * (settings.epochs or 0)
    state = create_state(model, settings, dataset.train_images, steps)
    return training, jax.device_put(state, everywhere)


def shardings(count: int) -> tuple[NamedSharding, NamedSharding]:
    """Returns shardings over the first `count` devices: split for batches, replicated for the state.

    With these, jit does the rest: batch norm computes the statistics of the whole batch.
    """
    mesh = jax.make_mesh((count,), ("batch",), (AxisType.Auto,), devices=devices(count))
    return NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())


def devices(count: int) -> list[Any]:
    """Returns the first `count` devices; a CPU is split into that many virtual devices.

    Raises:
        RunError: If there are fewer devices.
    """
    with contextlib.suppress(RuntimeError):  # JAX is already initialized: keep its devices
        jax.config.update("jax_num_cpu_devices", count)
    if len(jax.devices()) < count:
        raise RunError(
            f"--devices must be at most {len(jax.devices())}, the number of devices; got {count}."
        )
    return jax.devices()[:count]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Parse the preset first: its values are the defaults of --help and the parser.
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--preset", default="quick")
    preset = PRESETS.get(peek.parse_known_args(arguments)[0].preset, PRESETS["quick"])
    train_from_preset = tyro.conf.subcommand("train", default=Train(preset))
    commands: Any = (
        Annotated[Train, train_from_preset] | Annotated[Evaluate, tyro.conf.subcommand("eval")]
    )
    command = tyro.cli(
        commands,
        prog="python -m examples.cifar10",
        description=(__doc__ or "").split("\n")[0],
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        return command.run()
    except (RunError, data.DataError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
