"""The folder of a run is created once, and file errors are one line that says what to do."""

import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from examples import cifar10
from examples.cifar10 import resumed
from examples.runs import Run, RunError

HOME = Path(__file__).resolve().parents[2]

# Orbax reads arrays in parallel and raises only the first of several errors.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class State(struct.PyTreeNode):
    """The content of a checkpoint."""

    step: Any
    array: Any


def state(step: int, values: int = 500) -> State:
    """A state with ``values`` random values, which do not compress."""
    return State(jnp.int32(step), np.random.default_rng(step).normal(size=values))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a checkpoint and a line of metrics."""
    run = Run(tmp_path, "a")
    run.start({"seed": 0})
    run.write_metrics([{"epoch": 1}])
    run.save(state(3))
    return run


def test_one_of_many_starts(tmp_path: Path) -> None:
    """If several start a run of the same name at once, one succeeds and the others are refused."""
    refused: list[str] = []

    def start(i: int) -> bool:
        try:
            Run(tmp_path, "a").start({"who": i})
        except RunError as error:
            refused.append(str(error))
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(start, range(8)))
    assert sum(started) == 1
    assert all("must be a new folder; it contains a run" in text for text in refused)
    assert Run(tmp_path, "a").config() == {"who": started.index(True)}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_empty_folder_is_new(tmp_path: Path) -> None:
    """An empty folder, made by hand or left by a killed process, counts as new."""
    (tmp_path / "a").mkdir()
    Run(tmp_path, "a").start({"seed": 1})
    assert Run(tmp_path, "a").config() == {"seed": 1}


DAMAGED: dict[str, tuple[str, bytes, Callable[[Run], Any]]] = {
    "config": ("config.json", b'{"seed": ', Run.config),
    "config, bytes": ("config.json", b"\xff\xfe", Run.config),
    "config, a list": ("config.json", b"[1]", lambda run: resumed(None, run)),
    "config, other fields": (
        "config.json",
        b'{"widths": [8], "no": 1}',
        lambda run: resumed(None, run),
    ),
    "config, too few": ("config.json", b'{"seed": 0}', lambda run: resumed(None, run)),
    "metrics": ("metrics.jsonl", b'{"epoch": 1', Run.metrics),
    "metrics, a number": ("metrics.jsonl", b"1\n", Run.metrics),
    "metrics, too few": ("metrics.jsonl", b"", lambda run: run.metrics(1)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file(case: str, run: Run) -> None:
    """The error names the file."""
    name, content, read = DAMAGED[case]
    (run.folder / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name} must be intact; it is damaged") as raised:
        read(run)
    assert "\n" not in str(raised.value)


def test_a_damaged_checkpoint(run: Run) -> None:
    """If any of its files is truncated, it is either read correctly or named in the error."""
    refused, files = 0, [p for p in (run.folder / "checkpoints").rglob("*") if p.is_file()]
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        try:
            np.testing.assert_array_equal(run.restore(state(0)).array, state(3).array)
        except RunError as error:
            refused += "checkpoints/3 must be intact" in str(error)
        path.write_bytes(whole)
    assert refused > 0
    np.testing.assert_array_equal(run.restore(state(0)).array, state(3).array)
    gc.collect()  # of the other errors, before the next test


@contextmanager
def full_disk() -> Iterator[None]:
    """Limits files to 1 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(run: Run) -> None:
    """Earlier data is still there."""
    for write in (lambda: run.save(state(4, 50_000)), lambda: run.write("config.json", "0" * 5000)):
        with full_disk(), pytest.raises(RunError, match="a writable folder on a disk"):
            write()
    assert run.config() == {"seed": 0}
    np.testing.assert_array_equal(run.restore(state(0)).array, state(3).array)
    gc.collect()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes the folder read-only, and drops root's privileges, which would ignore that."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_read_only_folder() -> None:
    """Starting, saving and writing raise an error that names the folder, which can still be read."""
    with tempfile.TemporaryDirectory() as root:  # pytest's folders can only be read by their owner
        Path(root).chmod(0o755)
        run = Run(Path(root), "a")
        run.start({"seed": 0})
        writing = (
            lambda: run.save(state(4)),
            lambda: run.write("config.json", ""),
            lambda: Run(run.folder, "b").start({}),
        )
        with read_only(run.folder):
            for write in writing:
                with pytest.raises(RunError, match="must be a writable folder"):
                    write()
            assert run.config() == {"seed": 0}
            assert run.metrics() == []


SAVING = """
import itertools, sys
from pathlib import Path
from examples.runs import Run
from tests.examples.test_runs import state

run, first = Run(Path(sys.argv[1]), "a"), int(sys.argv[2])
print("ready", flush=True)
for step in itertools.count(first):
    run.write_metrics([{"epoch": epoch} for epoch in range(step)])
    run.save(state(step))
"""


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.thorough)])
def test_killed_at_any_moment(kills: int, run: Run) -> None:
    """There is always a complete checkpoint with its metrics, from which the next process continues."""
    rng, last = np.random.default_rng(kills), 3
    run.write_metrics([{"epoch": epoch} for epoch in range(last)])
    for _ in range(kills):
        command = [sys.executable, "-c", SAVING, str(run.root), str(last + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HOME) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.05, 0.8))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        restored = run.restore(state(0))
        assert restored.step >= last
        last = int(restored.step)
        np.testing.assert_array_equal(restored.array, state(last).array)
        assert len(run.metrics(last)) <= last + 1
    assert last > 3 or kills == 1


def test_a_file_that_cannot_be_read(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints one line that names the file, and returns 1."""
    path = run.folder / "config.json"
    path.unlink()
    path.mkdir()
    assert cifar10.main(["train", "--resume", "--name", run.name, "--runs", str(run.root)]) == 1
    assert "error: " in (error := capsys.readouterr().err)
    assert str(path) in error.replace("\n", "")


def test_the_folder_of_runs_is_a_file(tmp_path: Path) -> None:
    """Starting, continuing and saving raise an error that names the path."""
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file", "a")
    for call in (lambda: run.start({}), run.config, lambda: run.save(state(0)), run.has_checkpoint):
        with pytest.raises(RunError, match="file/a must be"):
            call()
