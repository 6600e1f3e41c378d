"""A run's folder: config.json, metrics.jsonl, checkpoints and plots."""

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
    """A run cannot be started or resumed. The message says why and what to do."""


class Run:
    """The folder `root`/`name`. Every write is atomic."""

    def __init__(self, root: Path, name: str) -> None:
        """Sets the folder; nothing is created before `start`."""
        self.root, self.name = root, name
        self.folder = root / name

    def start(self, config: dict[str, Any]) -> None:
        """Creates the folder of a new run, with `config` in it, in one step.

        Raises:
            RunError: If there already is a run of this name, or the folder cannot be created.
        """
        made = self.folder.with_name(f".{self.folder.name}-{uuid.uuid4().hex}")
        with self._writing():
            try:
                made.mkdir(parents=True)
                (made / "config.json").write_text(json.dumps(config, indent=2))
                made.rename(self.folder)  # fails if the folder is not empty
            except OSError:
                shutil.rmtree(made, ignore_errors=True)
                if not self.folder.is_dir():
                    raise
                raise RunError(
                    f"{self.folder} must be a new folder; it contains a run. Resume that run with "
                    f"--name {self.name} --resume, choose another --name, or delete the folder."
                ) from None

    def config(self) -> dict[str, Any]:
        """Returns the config that `start` wrote.

        Raises:
            RunError: If there is no run of this name, or its file is damaged.
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
        """Returns the lines of metrics.jsonl, one per epoch.

        Raises:
            RunError: If the file is damaged, or has fewer than `least` lines.
        """
        path = self.folder / "metrics.jsonl"
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            epochs = [dict(json.loads(line)) for line in lines]
            if len(epochs) < least:
                raise ValueError(f"it has {len(epochs)} epochs, but {least} were trained")
        except (TypeError, ValueError) as error:
            raise self.damaged("metrics.jsonl", error) from error
        return epochs

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Rewrites metrics.jsonl."""
        self.write("metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def save(self, state: Any) -> None:
        """Writes a checkpoint of `state`, a Flax struct with a `step`, and deletes the previous one.

        Raises:
            RunError: If the checkpoint cannot be written.
        """
        tree = jax.device_get(serialization.to_state_dict(state))
        with self._writing(), self._checkpoints() as checkpoints:
            # The old one is deleted once the new one is complete: one of them survives any kill.
            checkpoints.save(int(state.step), args=ocp.args.StandardSave(tree))  # pyright: ignore[reportCallIssue]

    def has_checkpoint(self) -> bool:
        """Whether the run has a checkpoint."""
        with self._writing(), self._checkpoints() as checkpoints:
            return checkpoints.latest_step() is not None

    def restore(self, state: Any) -> Any:
        """Returns the newest checkpoint, in the structure of `state`.

        Raises:
            RunError: If there is none, or it is damaged.
        """
        with self._writing(), self._checkpoints() as checkpoints:
            step = checkpoints.latest_step()
            if step is None:
                raise RunError(
                    f"{self.folder} must contain a checkpoint; it has none yet. The first is written "
                    f"after the first epoch, or on Ctrl-C: train with --name {self.name} --resume."
                )
            tree = serialization.to_state_dict(state)
            try:
                restored = checkpoints.restore(step, args=ocp.args.StandardRestore(tree))  # pyright: ignore[reportCallIssue]
                return serialization.from_state_dict(state, restored)
            except Exception as error:  # Orbax and its dependencies raise many types
                raise self.damaged(f"checkpoints/{step}", error) from error

    def _checkpoints(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager((self.folder / "checkpoints").absolute(), options=options)

    def write(self, name: str, text: str) -> None:
        """Writes a text file in one step, so that nobody reads a partial file.

        Raises:
            RunError: If the file cannot be written.
        """
        partial = self.folder / f".{name}.partial"
        with self._writing():
            partial.write_text(text)
            partial.replace(self.folder / name)

    def damaged(self, name: str, error: Exception) -> RunError:
        """Returns the error to raise for a damaged file."""
        return RunError(
            f"{self.folder / name} must be intact; it is damaged ({_first_line(error)}). "
            f"Restore it from a copy, or delete {self.folder} and train again."
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError is from Orbax
            if isinstance(error, ValueError) and jax.process_count() > 1:
                raise  # Orbax waits for the other processes: one of them may have died
            raise RunError(
                f"{self.folder} must be a writable folder on a disk with free space; "
                f"{_first_line(error)}. Free some space, or choose another folder with --runs."
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def free_name(root: Path, wanted: str) -> str:
    """Returns the first of `wanted`, `wanted`-2, and so on, that is not a run yet."""
    names = [wanted, *(f"{wanted}-{i}" for i in range(2, 1000))]
    return next(name for name in names if not (root / name / "config.json").exists())


class Interruption:
    """Whether an interruption (Ctrl-C) or a termination was requested."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turns the first SIGINT or SIGTERM into a flag, to be checked between two steps.

    A step donates its old state, so an exception in the middle of a step would leave no state to save. A
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
