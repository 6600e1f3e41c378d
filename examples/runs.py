"""A run's folder: config.json, metrics.jsonl, checkpoints and pictures."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import serialization


class RunError(RuntimeError):
    """A run that cannot be started or continued. The message says why and what to do."""


class Run:
    """The folder `root`/`name`. Everything in it is written whole or not at all."""

    def __init__(self, root: Path, name: str) -> None:
        """Name the folder; nothing is created before `start`."""
        self.root, self.name = root, name
        self.folder = root / name

    def start(self, config: dict[str, Any]) -> None:
        """Create the folder and write `config`; it must be a new run.

        Raises:
            RunError: there is a run of this name.
        """
        if (self.folder / "config.json").exists():
            raise RunError(
                f"{self.folder} must be a new folder; it holds a run. Continue that one with "
                f"--name {self.name} --resume, choose another --name, or delete the folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write("config.json", json.dumps(config, indent=2))

    def config(self) -> dict[str, Any]:
        """What `start` wrote.

        Raises:
            RunError: there is no run of this name.
        """
        try:
            return json.loads((self.folder / "config.json").read_text())
        except FileNotFoundError:
            others = sorted(p.parent.name for p in self.root.glob("*/config.json"))
            raise RunError(
                f"{self.folder} must be the folder of a run; there is no config.json in it. "
                f"Runs here: {', '.join(others) or 'none'}."
            ) from None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch; none before the first."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew."""
        self.write("metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def save(self, state: Any) -> None:
        """Write a checkpoint of `state`, a Flax struct with a `step`, and forget the one before it."""
        tree = jax.device_get(serialization.to_state_dict(state))
        with self._checkpoints() as checkpoints:
            # The old one goes when the new one is whole: a kill at any moment leaves one of them.
            checkpoints.save(int(state.step), args=ocp.args.StandardSave(tree))  # pyright: ignore[reportCallIssue]

    def has_checkpoint(self) -> bool:
        """Whether `save` has been here."""
        with self._checkpoints() as checkpoints:
            return checkpoints.latest_step() is not None

    def restore(self, state: Any) -> Any:
        """The newest checkpoint, in the structure of `state`.

        Raises:
            RunError: there is none.
        """
        with self._checkpoints() as checkpoints:
            step = checkpoints.latest_step()
            if step is None:
                raise RunError(
                    f"{self.folder} must hold a checkpoint; it holds none yet. The first is written "
                    f"after the first epoch, or on Ctrl-C: train with --name {self.name} --resume."
                )
            tree = serialization.to_state_dict(state)
            restored = checkpoints.restore(step, args=ocp.args.StandardRestore(tree))  # pyright: ignore[reportCallIssue]
        return serialization.from_state_dict(state, restored)

    def _checkpoints(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager((self.folder / "checkpoints").absolute(), options=options)

    def write(self, name: str, text: str) -> None:
        """Write a text file in one step, so that nobody finds half of it."""
        partial = self.folder / f".{name}.partial"
        partial.write_text(text)
        partial.replace(self.folder / name)


def free_name(root: Path, wanted: str) -> str:
    """`wanted`, or `wanted`-2 and so on: the first that is no run yet."""
    names = [wanted, *(f"{wanted}-{i}" for i in range(2, 1000))]
    return next(name for name in names if not (root / name / "config.json").exists())


class Interruption:
    """Whether Ctrl-C or a termination was asked for."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turns the first SIGINT or SIGTERM into a flag, to be looked at between two steps.

    A step gives its old state away, so an exception in the middle of one would leave none to save. A
    second Ctrl-C ends the program at once.
    """
    interruption = Interruption()

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        interruption.asked = True
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
