"""Train the CIFAR-10 example in several processes, on one machine or on many.

    python -m examples.multihost --local 3          # three processes here, on the CPU
    srun python -m examples.multihost               # one of the processes that SLURM starts

Each process loads its share of every batch. Batch norm computes the statistics of the whole batch, as with
any jit over a mesh: the model has no axis name, and the training step is the one of cifar10.py. The last
batch of an epoch is padded and masked, so some processes may have no real images in it.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console

from . import cifar10, data
from .runs import Run, RunError

console = Console()
AGAIN = "Restart all processes with --name NAME --resume to continue from the last checkpoint."


@dataclass(frozen=True)
class Options:
    """Options of every process."""

    settings: cifar10.Settings
    local: int | None = None
    """Start this many processes here, on the CPU, and wait for them."""
    coordinator: str | None = None
    """HOST:PORT of process 0. If unset: as given by SLURM, Open MPI or Kubernetes."""
    processes: int | None = None
    """Number of processes. If unset: as given by the scheduler."""
    process_id: int | None = None
    """Index of this process, from 0. If unset: as given by the scheduler."""
    name: str | None = None
    """Name of the run's folder. If unset: the data set and "multihost"."""
    runs: Path = Path("runs")
    """Folder of all runs, accessible to all processes."""
    data_dir: Path | None = None
    """Folder that contains cifar-10-batches-bin/. If unset: $JAXNORM_DATA, or else a one-time download."""
    resume: bool = False
    """Resume run NAME from its last checkpoint; the number of processes may be different."""
    timeout: int = 60
    """Seconds to wait for other processes to join, and for a heartbeat of each."""


# --- one process ---------------------------------------------------------------------------------


def join(options: Options) -> int:
    """Joins the other processes and trains; returns the exit status."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Printed before the wait: if a process does not join, JAX ends this one without such a message.
    say(
        f"process {'?' if options.process_id is None else options.process_id}: waiting for "
        f"{options.processes or 'all'} processes at {options.coordinator or 'the coordinator'}; "
        f"if one does not join, this ends in about {options.timeout} s."
    )
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process_id,
            initialization_timeout=options.timeout,
            heartbeat_timeout_seconds=options.timeout,
        )
    except ValueError as error:  # JAX found no scheduler
        raise RunError(
            f"the processes must be started by a scheduler that JAX supports, or get explicit addresses; "
            f"JAX says: {error} Start several here with --local 3, or give each --coordinator HOST:PORT "
            f"--processes N --process-id I."
        ) from error
    try:
        train(options)
    except Exception as error:
        me = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, RunError | data.DataError):
            say(f"[bold red]error:[/] {me}: {error}")
        else:  # perhaps from a collective: JAX has no error type for these
            traceback.print_exc()
            say(
                f"[bold red]error:[/] {me} stopped: {str(error).splitlines()[0]}\nIf this mentions a "
                f"connection, another process died: look for its message. {AGAIN}"
            )
        os._exit(1)  # a regular exit would wait for the others, which wait for this one
    return 0


def train(options: Options) -> None:
    """Trains to the last epoch and saves after each; process 0 prints and evaluates."""
    first = jax.process_index() == 0
    settings, run, dataset = begin(options)
    model = cifar10.build_model(settings, len(dataset.classes))
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), (AxisType.Auto,))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("batch",), ()))

    steps_per_epoch = -(-len(dataset.train_labels) // settings.batch_size)
    epochs = settings.epochs or 0
    state = cifar10.create_state(model, settings, dataset.train_images, steps_per_epoch * epochs)
    if options.resume and run.has_checkpoint():
        state = run.restore(state)
    done = int(state.step) // steps_per_epoch
    metrics = run.metrics(done)
    # Every process has the same state: turn it into global arrays that are replicated on all devices.
    state = jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(everywhere, np.asarray(a)), state
    )
    train_step = cifar10.make_train_step(settings, len(dataset.classes))

    for epoch in range(done, epochs):
        start = time.perf_counter()
        for share in shares(dataset, settings, epoch):
            batch = (jax.make_array_from_process_local_data(split, part) for part in share)
            state = train_step(state, settings.seed, *batch)
        loss, accuracy = cifar10.epoch_averages(state)  # waits for the step
        seconds = time.perf_counter() - start
        metrics = [
            *metrics[:epoch],
            {
                "epoch": epoch + 1,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "seconds": seconds,
            },
        ]
        state = state.replace(totals=0 * state.totals)
        if first:
            run.write_metrics(metrics)
            line = f"epoch {epoch + 1:2}  loss {loss:.4f}  train {accuracy:.1%}  {seconds:.1f} s"
            console.print(line, highlight=False)
        run.save(state)
    if first:
        measured = cifar10.evaluate(model, state, dataset.test_images, dataset.test_labels)
        run.write("results.json", json.dumps(measured, indent=2))
        console.print(cifar10.report.accuracy_table(measured))
        console.print(
            f"Metrics and checkpoint are in {run.folder}/", soft_wrap=True, highlight=False
        )


def begin(options: Options) -> tuple[cifar10.Settings, Run, data.Dataset]:
    """Returns the settings, the folder and the data of a new run, or of the run to resume.

    Raises:
        RunError: If there is no such run, or the batch cannot be split over the devices.
    """
    if options.resume and options.name:  # the run's settings name its data
        run = Run(options.runs, options.name)
        settings = cifar10.resumed(options.settings, run)
        dataset = data.load(settings.data, options.data_dir)
    else:
        dataset = data.load(options.settings.data, options.data_dir)
        run = Run(options.runs, options.name or f"{dataset.name}-multihost")
        settings = (
            cifar10.resumed(options.settings, run)
            if options.resume
            else cifar10.completed(options.settings, dataset)
        )
    if settings.batch_size % jax.device_count():
        raise RunError(
            f"batch_size must be a multiple of the {jax.device_count()} devices of all processes; got "
            f"{settings.batch_size}. Try --batch-size {64 * jax.device_count()}."
        )
    if jax.process_index() == 0 and not options.resume:
        run.start(dataclasses.asdict(settings))
    return settings, run, dataset


def shares(
    dataset: data.Dataset, settings: cifar10.Settings, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields this process's part of each batch: images, labels and a mask that excludes padding."""
    size, each = settings.batch_size, settings.batch_size // jax.process_count()
    order = np.random.default_rng((settings.seed, epoch)).permutation(len(dataset.train_labels))
    for start in range(0, len(order), size):
        chosen = order[start : start + size][each * jax.process_index() :][:each]
        counted = np.arange(each) < len(chosen)
        chosen = np.resize(chosen, each) if len(chosen) else np.zeros(each, int)  # padding
        yield dataset.train_images[chosen], dataset.train_labels[chosen], counted


# --- several on this machine ---------------------------------------------------------------------


def start(options: Options, arguments: list[str]) -> int:
    """Starts several processes with the same arguments and waits for them; returns the exit status."""
    assert options.local is not None
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    program = [sys.executable, "-m", "examples.multihost", *arguments]
    program += ["--coordinator", coordinator, "--processes", str(options.local), "--process-id"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    started = [subprocess.Popen([*program, str(i)], env=environment) for i in range(options.local)]
    try:
        while not any(p.poll() for p in started) and any(p.poll() is None for p in started):
            time.sleep(0.1)
    finally:
        failed = [(i, status) for i, p in enumerate(started) if (status := p.poll())]
        for process in started:
            process.kill()
            process.wait()
    for number, status in failed[:1]:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        say(
            f"[bold red]error:[/] process {number} of {options.local} {how}; the others were stopped. {AGAIN}"
        )
    return 1 if failed else 0


def say(text: str) -> None:
    """Prints a line to standard error."""
    Console(stderr=True).print(text, soft_wrap=True, highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = tyro.cli(
        Options,
        prog="python -m examples.multihost",
        description=(__doc__ or "").split("\n")[0],
        args=arguments,
        default=Options(cifar10.Settings()),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        if options.local is not None and options.process_id is None:
            return start(options, arguments)
        return join(options)
    except (RunError, data.DataError, OSError) as error:
        say(f"[bold red]error:[/] {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
