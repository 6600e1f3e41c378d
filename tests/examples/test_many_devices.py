"""Training on many devices and in several processes matches training on one device."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import cifar10, many_devices, multihost
from examples.data import load
from tests.compiling import compiler_flags

ROOT = Path(__file__).parents[2]
# 1,437 digits in batches of 84: the last one has 9, so only the first process has any of it.
SETTINGS = ("--data", "digits", "--widths", "8", "--stem-width", "8", "--batch-size", "84")
SETTINGS += ("--epochs", "3", "--dtype", "float64")


def start(program: str, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts `python -m examples.PROGRAM`, as by hand."""
    environment = {
        **os.environ,
        "XLA_FLAGS": compiler_flags(exact_maxima=True),
        "COLUMNS": "200",
        "JAX_COMPILATION_CACHE_DIR": str(runs / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"examples.{program}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for the process to succeed and returns its output."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


# --- devices of one process ----------------------------------------------------------------------


@pytest.mark.thorough
def test_losses_step_by_step(tmp_path: Path) -> None:
    """All three ways match one device, and statistics of each device alone do not."""
    arguments = ["--data", "digits", "--devices", "4", "--steps", "5", "--out", str(tmp_path)]
    output = finish(start("many_devices", tmp_path, *arguments, "--batch-size", "64"))
    assert "4 devices, pmap" in output
    found = json.loads((tmp_path / "losses.json").read_text())
    assert len(found) == 1 + 3 + 1
    for name, difference in many_devices.apart(found).items():
        if name.endswith("statistics of each"):
            assert difference.max() > 1e-4
        else:
            assert difference.max() < 1e-12
    assert (tmp_path / "losses.png").stat().st_size > 10_000


# --- processes -----------------------------------------------------------------------------------


def join(runs: Path, name: str, *more: str) -> subprocess.Popen[str]:
    """Starts the training of several processes, or one of them."""
    return start("multihost", runs, "--runs", str(runs), "--name", name, *more)


def figures(run: Path) -> tuple[list[float], Any]:
    """The losses of the epochs, and the final measurements."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines], json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with a run "1" of one process."""
    folder = tmp_path_factory.mktemp("multihost")
    finish(join(folder, "1", "--local", "1", *SETTINGS))
    return folder


def check(runs: Path, name: str) -> None:
    """Checks losses and running statistics against those of one process."""
    (losses, measured), (expected, alone) = figures(runs / name), figures(runs / "1")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert measured["running"] == alone["running"]
    for mine, theirs in zip(measured["gap"], alone["gap"], strict=True):
        np.testing.assert_allclose(mine["mean"], theirs["mean"], rtol=1e-3)


@pytest.mark.thorough
def test_processes_train_as_one(runs: Path) -> None:
    """Three processes share each batch, and the last batch leaves two of them empty."""
    output = finish(join(runs, "3", "--local", "3", *SETTINGS))
    assert "epoch  3" in output
    check(runs, "3")


@pytest.mark.thorough
def test_a_killed_process_is_survived(runs: Path) -> None:
    """If one of two is killed, the other soon exits with a reason; once resumed, they match one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    rest = ("--coordinator", address, "--processes", "2", "--timeout", "20", *SETTINGS)
    first, second = (join(runs, "killed", *rest, "--process-id", str(i)) for i in range(2))
    deadline = time.monotonic() + 240
    while not any((runs / "killed" / "checkpoints").glob("[0-9]*")):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    output, _ = first.communicate(timeout=120)
    assert first.returncode != 0, "it ended before it could be killed"
    assert time.monotonic() - killed < 60
    assert "another process died" in output or "another task died" in output
    second.communicate()
    assert second.returncode == -signal.SIGKILL
    finish(join(runs, "killed", "--local", "2", "--resume"))
    check(runs, "killed")


@pytest.mark.thorough
def test_a_process_that_never_joins(tmp_path: Path) -> None:
    """The process that waits says for how long, and exits."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    rest = ("--coordinator", address, "--processes", "2", "--process-id", "0", "--timeout", "2")
    process = join(tmp_path, "alone", *rest, *SETTINGS)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "waiting for 2 processes" in output
    assert "if one does not join, this ends in about 2 s" in output


@pytest.mark.thorough
def test_mistakes_are_explained(runs: Path) -> None:
    """Without a scheduler, or with an existing run, all processes soon print a line and exit with 1."""
    process = join(runs, "nobody", *SETTINGS)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Start several here with --local 3" in output
    process = join(runs, "1", "--local", "2", "--timeout", "100", *SETTINGS)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "must be a new folder; it contains a run" in output


def test_shares_are_all_images_once() -> None:
    """With one process, every image of the epoch is unmasked once, and padding never is."""
    dataset = load("digits")
    settings = cifar10.Settings(batch_size=84)
    shares = list(multihost.shares(dataset, settings, epoch=0))
    assert [int(counted.sum()) for _, _, counted in shares] == [84] * 17 + [9]
    assert all(len(images) == len(labels) == 84 for images, labels, _ in shares)
    seen = np.concatenate([labels[counted] for _, labels, counted in shares])
    assert (np.bincount(seen) == np.bincount(dataset.train_labels)).all()


def test_a_batch_that_cannot_be_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what must hold and what to try."""
    monkeypatch.setattr(multihost, "join", multihost.train)
    arguments = ["--data", "digits", "--batch-size", "63", "--runs", str(tmp_path)]
    assert multihost.main([*arguments, "--process-id", "0"]) == 1
    assert "must be a multiple of the 8 devices of all processes; got 63" in " ".join(
        capsys.readouterr().err.split()
    )
