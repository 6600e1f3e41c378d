"""The same training on one device and on many, in three ways: jit over a mesh, shard_map and pmap.

    python -m examples.many_devices                # on 1, 2, 4 and 8 (virtual) devices, a few minutes

Trains the CNN of the CIFAR-10 example for 40 steps at the same global batch size, and compares the loss of
every step with the loss on one device; then repeats this with separate statistics per device. The arithmetic
is float64 to rule out rounding: in float32, activations that tie in a maximum amplify even the smallest
rounding error from step to step, on one device as well as on many.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from . import cifar10, data, measure, report

console = Console()
AXIS = "batch"
WAYS = ("jit over a mesh", "shard_map", "pmap")
Step: TypeAlias = Callable[..., tuple[cifar10.TrainState, jax.Array]]


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    devices: tuple[int, ...] = (2, 4, 8)
    """Numbers of devices to compare with one; on a CPU, they are virtual."""
    steps: int = 40
    """Training steps."""
    dtype: Literal["float64", "float32"] = "float64"
    """dtype of the parameters, the statistics and the activations."""
    data: Literal["auto", "cifar10", "digits"] = "auto"
    """CIFAR-10, scikit-learn's 8x8 digits, or (auto) CIFAR-10 if it is available and otherwise digits."""
    batch_size: int = 256
    """Images per batch, over all devices."""
    lr: float = 0.1
    """Peak learning rate."""
    seed: int = 0
    """Random seed for the initialization and the order of the images."""
    data_dir: Path | None = None
    """Folder that contains cifar-10-batches-bin/. If unset: $JAXNORM_DATA, or else a one-time download."""
    out: Path = Path("runs/many-devices")
    """Folder for losses.json and losses.png."""


# --- one step, and where it runs -----------------------------------------------------------------


def train_step(
    model: Any,
    state: cifar10.TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int,
    over_devices: Callable[[Any], Any] = lambda gradients: gradients,
) -> tuple[cifar10.TrainState, jax.Array]:
    """Returns the state after a step on these images, and their share of the loss.

    `batch_size` counts the images of all devices, so the shares of the loss and of its gradient add up.
    """

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            measure.scaled(images),
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum() / batch_size, updated["batch_stats"]

    (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=over_devices(gradients), batch_stats=stats), loss


def on(way: str, model: Any, count: int, batch_size: int, *, synced: bool = True) -> Step:
    """Returns the step on `count` devices, with synced batch statistics or separate ones per device."""
    chosen = cifar10.devices(count)
    mesh = jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=chosen)
    whole, part = PartitionSpec(), PartitionSpec(AXIS)
    if way == "jit over a mesh":
        # The same program as on one device: the compiler computes statistics and loss over all devices.
        step = jax.jit(partial(train_step, model, batch_size=batch_size))

        def call(state: Any, images: Any, labels: Any) -> Any:
            state = jax.device_put(state, NamedSharding(mesh, whole))
            return step(state, *jax.device_put((images, labels), NamedSharding(mesh, part)))

        return call

    # The program that each device runs: the norms need the name of the axis.
    model = model.clone(norm=partial(model.norm, axis_name=AXIS if synced else None))
    step = partial(train_step, model, batch_size=batch_size)
    if way == "shard_map":

        def of_each(state: Any, images: Any, labels: Any) -> Any:
            # JAX itself sums the gradients of replicated arrays over the devices.
            state, loss = step(state, images, labels)
            if not synced:  # out_specs need replicated statistics; the loss ignores them
                state = state.replace(batch_stats=lax.pmean(state.batch_stats, AXIS))
            return state, lax.psum(loss, AXIS)

        return jax.jit(
            jax.shard_map(of_each, mesh=mesh, in_specs=(whole, part, part), out_specs=whole)
        )

    def of_each_and_summed(state: Any, images: Any, labels: Any) -> Any:
        state, loss = step(
            state, images, labels, over_devices=lambda gradients: lax.psum(gradients, AXIS)
        )
        return state, lax.psum(loss, AXIS)

    mapped = jax.pmap(of_each_and_summed, AXIS, in_axes=(None, 0, 0), out_axes=None, devices=chosen)

    def split(a: Any) -> Any:
        return a.reshape(count, -1, *a.shape[1:])

    return lambda state, images, labels: mapped(state, split(images), split(labels))


# --- the comparison ------------------------------------------------------------------------------


def losses(step: Step, state: cifar10.TrainState, batches: Sequence[Any]) -> list[float]:
    """Returns the loss of each step."""
    found = []
    for images, labels in batches:
        state, loss = step(state, images, labels)
        found.append(float(loss))
    return found


def compare(options: Options) -> dict[str, list[float]]:
    """Returns the losses on one device, on many in each way, and with separate statistics per device."""
    dataset = data.load(options.data, options.data_dir)
    settings = cifar10.Settings(
        widths=(16, 32),
        stem_width=16,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
    )
    dtype = jnp.dtype(options.dtype)
    model = cifar10.build_model(settings, len(dataset.classes))
    model = model.clone(norm=partial(model.norm, dtype=dtype), dtype=dtype)
    state = cifar10.create_state(model, settings, dataset.train_images, options.steps)
    variables = jax.tree.map(lambda a: a.astype(dtype), (state.params, state.batch_stats))
    state = state.replace(
        params=variables[0], batch_stats=variables[1], opt_state=state.tx.init(variables[0])
    )
    order = np.random.default_rng(settings.seed).permutation(len(dataset.train_labels))
    chosen = np.resize(order, (options.steps, settings.batch_size))
    batches = [(dataset.train_images[i], dataset.train_labels[i]) for i in chosen]

    rows = [("1 device", WAYS[0], 1, True)]
    rows += [(f"{n} devices, {way}", way, n, True) for n in options.devices for way in WAYS]
    rows += [(f"{n} devices, statistics of each", "shard_map", n, False) for n in options.devices]
    found = {}
    for name, way, count, synced in rows:
        with console.status(name):
            step = on(way, model, count, settings.batch_size, synced=synced)
            found[name] = losses(step, state, batches)
    return found


def apart(found: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """The relative difference of each run's losses from those on one device, at each step."""
    one = np.asarray(found["1 device"])
    return {
        name: np.abs(np.asarray(x) / one - 1) for name, x in found.items() if name != "1 device"
    }


def table(found: dict[str, list[float]]) -> Table:
    """A table of the largest difference of each run."""
    result = Table(title="Loss of each step against one device", title_justify="left")
    result.add_column("trained on")
    result.add_column("largest difference", justify="right")
    for name, difference in apart(found).items():
        result.add_row(name, f"{difference.max():.1e}")
    return result


def draw(found: dict[str, list[float]], title: str, path: Path) -> None:
    """Draws the differences over the steps: with synced statistics, and with separate ones per device."""
    figure, axes = report.new_figure(
        title, "Difference of each step's loss from that on one device"
    )
    steps = np.arange(1, len(found["1 device"]) + 1)
    differences = apart(found)
    smallest = min(d[d > 0].min(initial=1.0) for d in differences.values())
    for alone, colour, label in (
        (False, report.BLUE, "statistics of all devices, in each of the three ways"),
        (True, report.ORANGE, "statistics of each device alone"),
    ):
        lines = [d for name, d in differences.items() if name.endswith("of each") == alone]
        for difference in lines:
            axes.plot(steps, np.maximum(difference, smallest / 2), color=colour, lw=1.2, alpha=0.8)
        axes.text(steps[-1], np.max(lines) * 4, label, color=colour, ha="right")
    axes.set_yscale("log")
    axes.set_ylim(top=1)
    axes.set_xlabel("Training step")
    axes.set_ylabel("Relative difference")
    report.save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = tyro.cli(
        Options,
        prog="python -m examples.many_devices",
        description=(__doc__ or "").split("\n")[0],
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    cifar10.devices(max(options.devices))
    with jax.enable_x64(options.dtype == "float64"):
        found = compare(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "losses.json").write_text(json.dumps(found, indent=1))
    console.print(table(found))
    counts = ", ".join(map(str, options.devices))
    draw(
        found,
        f"The same training on {counts} devices ({options.dtype})",
        options.out / "losses.png",
    )
    console.print(f"Losses and plot are in {options.out}/", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
