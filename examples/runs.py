"""A run's folder: config.json, metrics.jsonl, checkpoints and pictures."""

import json
import shutil
import signal
import uuid
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
        """Create the folder with `config` in it, in one step; it must be a new run.

        Raises:
            RunError: there is a run of this name, or the folder cannot be made.
        """
        made = self.folder.with_name(f".{self.folder.name}-{uuid.uuid4().hex}")
        with self._writing():
            try:
                made.mkdir(parents=True)
                (made / "config.json").write_text(json.dumps(config, indent=2))
                made.rename(self.folder)  # refused by a folder with anything in it
            except OSError:
                shutil.rmtree(made, ignore_errors=True)
                if not self.folder.is_dir():
                    raise
                raise RunError(
                    f"{self.folder} must be a new folder; it holds a run. Continue that one with "
                    f"--name {self.name} --resume, choose another --name, or delete the folder."
                ) from None

    def config(self) -> dict[str, Any]:
        """What `start` wrote.

        Raises:
            RunError: there is no run of this name, or its file is damaged.
        """
        try:
            return json.loads((self.folder / "config.json").read_text())
        except ValueError as error:
            raise self.damaged("config.json", error) from error
        except (FileNotFoundError, NotADirectoryError):
            others = sorted(p.parent.name for p in self.root.glob("[!.]*/config.json"))
            raise RunError(
                f"{self.folder} must be the folder of a run; there is no config.json in it. "
                f"Runs here: {', '.join(others) or 'none'}."
            ) from None

    def metrics(self, least: int = 0) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch, of which there are `least` or more.

        Raises:
            RunError: the file is damaged.
        """
        path = self.folder / "metrics.jsonl"
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            epochs = [dict(json.loads(line)) for line in lines]
            if len(epochs) < least:
                raise ValueError(f"{len(epochs)} epochs, and {least} have been trained")
        except (TypeError, ValueError) as error:
            raise self.damaged("metrics.jsonl", error) from error
        return epochs

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew."""
        self.write("metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def save(self, state: Any) -> None:
        """Write a checkpoint of `state`, a Flax struct with a `step`, and forget the one before it.

        Raises:
            RunError: it cannot be written.
        """
        tree = jax.device_get(serialization.to_state_dict(state))
        with self._writing(), self._checkpoints() as checkpoints:
            # The old one goes when the new one is whole: a kill at any moment leaves one of them.
            checkpoints.save(int(state.step), args=ocp.args.StandardSave(tree))  # pyright: ignore[reportCallIssue]

    def has_checkpoint(self) -> bool:
        """Whether `save` has been here."""
        with self._writing(), self._checkpoints() as checkpoints:
            return checkpoints.latest_step() is not None

    def restore(self, state: Any) -> Any:
        """The newest checkpoint, in the structure of `state`.

        Raises:
            RunError: there is none, or it is damaged.
        """
        with self._writing(), self._checkpoints() as checkpoints:
            step = checkpoints.latest_step()
            if step is None:
                raise RunError(
                    f"{self.folder} must hold a checkpoint; it holds none yet. The first is written "
                    f"after the first epoch, or on Ctrl-C: train with --name {self.name} --resume."
                )
            tree = serialization.to_state_dict(state)
            try:
                restored = checkpoints.restore(step, args=ocp.args.StandardRestore(tree))  # pyright: ignore[reportCallIssue]
                return serialization.from_state_dict(state, restored)
            except Exception as error:  # of Orbax and of what it is made of, which raise many kinds
                raise self.damaged(f"checkpoints/{step}", error) from error

    def _checkpoints(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager((self.folder / "checkpoints").absolute(), options=options)

    def write(self, name: str, text: str) -> None:
        """Write a text file in one step, so that nobody finds half of it.

        Raises:
            RunError: it cannot be written.
        """
        partial = self.folder / f".{name}.partial"
        with self._writing():
            partial.write_text(text)
            partial.replace(self.folder / name)

    def damaged(self, name: str, error: Exception) -> RunError:
        """What is to be raised of a file that is not what was written."""
        return RunError(
            f"{self.folder / name} must be as training wrote it; it is damaged ({_first_line(error)}). "
            f"Restore it from a copy, or delete {self.folder} and train again."
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # the latter of Orbax
            if isinstance(error, ValueError) and jax.process_count() > 1:
                raise  # it waits for the other processes: one of them may have died
            raise RunError(
                f"{self.folder} must be a folder that can be written, on a disk with space; "
                f"{_first_line(error)}. Make room, or choose another folder with --runs."
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


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
