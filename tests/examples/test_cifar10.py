"""The CIFAR-10 example, run as by a user, on digits, which need no download."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image, pyplot as plt

from examples import cifar10, measure, models, report
from examples.data import load
from jaxnorm import linen as jnl
from tests.compiling import compiler_flags
from tests.selecting import thorough_but

ROOT = Path(__file__).parents[2]
SHORT = (
    *("--data", "digits", "--widths", "8", "16", "--stem-width", "8", "--batch-size", "64"),
    *("--stem", "whitened", "--optimizer", "muon"),
)


def command(*arguments: str, runs: Path) -> subprocess.Popen[str]:
    """Starts `python -m examples.cifar10` in a separate process, as by hand."""
    environment = {
        **os.environ,
        "XLA_FLAGS": compiler_flags(exact_maxima=True),
        "COLUMNS": "200",
        # All processes compile the same programs; the cache compiles them once.
        "JAX_COMPILATION_CACHE_DIR": str(runs / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "examples.cifar10", *arguments, "--runs", str(runs)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """Waits for the process to exit with `status` and returns its output."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def numbers(run: Path) -> tuple[list[dict], dict]:
    """Every figure of a run that does not depend on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["images_per_second"]
    return lines, json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of three epochs and its output."""
    runs = tmp_path_factory.mktemp("runs")
    output = finish(command("train", *SHORT, "--epochs", "3", "--name", "whole", runs=runs))
    return runs, output


def test_a_run_leaves_what_it_promises(trained: tuple[Path, str]) -> None:
    """A run writes metrics of every epoch, its settings and two pictures, and prints the table."""
    runs, output = trained
    epochs, results = numbers(runs / "whole")
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert set(results["batch"]) == {"360", "32", "8", "2"}
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert results["running"] > 0.5
    assert f"{results['running']:.2%}" in output
    assert len(results["gap"]) == 4
    assert json.loads((runs / "whole" / "config.json").read_text())["epochs"] == 3
    for picture in ("curves.png", "train_vs_eval.png"):
        pixels = image.imread(runs / "whole" / picture)
        assert pixels.shape[1] > 1000
        assert pixels.std() > 0.05


@pytest.mark.parametrize("limits", [(0.84, 1.03), (0.1, 0.5), (0.0, 1.0), (0.74, 0.748)])
def test_labels_in_percent(limits: tuple[float, float]) -> None:
    """Axes are labelled with the exact values, at most 100 %."""
    figure, axes = report.new_figure("", "")
    axes.set_ylim(*limits)
    report.percents(axes.yaxis)
    figure.canvas.draw()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    labels = {tick: text.get_text() for tick, text in ticks if text.get_text()}
    assert len(labels) >= 3
    for tick, label in labels.items():
        percent = float(label.removesuffix("%"))
        assert percent == pytest.approx(100 * tick)
        assert percent <= 100
    plt.close(figure)


@pytest.mark.thorough
def test_eval_repeats_the_measurement(trained: tuple[Path, str]) -> None:
    """The eval command reproduces the figures from the checkpoint."""
    runs, _ = trained
    before = numbers(runs / "whole")
    finish(command("eval", "--name", "whole", runs=runs))
    assert numbers(runs / "whole") == before


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sign", "kill"),
    [
        # Before any checkpoint; once the first epoch's exists; by Ctrl-C in the second epoch.
        ("config.json", signal.SIGKILL),
        ("checkpoints/22", signal.SIGKILL),
        ("metrics.jsonl", signal.SIGINT),
    ],
)
def test_resume_reaches_the_same_numbers(
    trained: tuple[Path, str], sign: str, kill: signal.Signals
) -> None:
    """A run that was interrupted or killed, once resumed, gives the numbers of an uninterrupted one."""
    runs, _ = trained
    name = f"{kill.name}-{sign.replace('/', '-')}"
    process = command("train", *SHORT, "--epochs", "3", "--name", name, runs=runs)
    deadline = time.monotonic() + 120
    while not (runs / name / sign).exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(kill)
    if kill == signal.SIGINT:
        assert f"--name {name} --resume" in finish(process, status=130)
    else:
        finish(process, status=-kill)
    finish(command("train", "--name", name, "--resume", runs=runs))
    assert numbers(runs / name) == numbers(runs / "whole")


@pytest.mark.thorough
def test_two_devices_train_as_one(trained: tuple[Path, str]) -> None:
    """Data-parallel training uses the whole batch's statistics and gives the figures of one device."""
    runs, _ = trained
    arguments = ("train", *SHORT, "--epochs", "3", "--name", "two", "--devices", "2")
    finish(command(*arguments, runs=runs))
    two, one = numbers(runs / "two")[0][0], numbers(runs / "whole")[0][0]
    np.testing.assert_allclose(two["train_loss"], one["train_loss"], rtol=1e-3)
    two_means, one_means = ([gap["mean"] for gap in epoch["gap"]] for epoch in (two, one))
    np.testing.assert_allclose(two_means, one_means, atol=5e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--name", "whole"), "must be a new folder; it contains a run"),
        (("--name", "whole", "--resume", "--lr", "3"), "has lr=0.1, and 3.0 was given"),
        (("--name", "absent", "--resume"), "Runs here: "),
        (("--batch-size", "63", "--devices", "2"), "must be a multiple of devices"),
        (("--resume",), "--resume needs --name"),
        (("--epochs", "0"), "must be 1 or more; got epochs=0"),
        (("--momentum", "2"), "momentum must lie in [0, 1]; got 2.0"),
        (("--stem", "whitened"), "an even number of channels, at most 18, to whiten patches"),
    ],
)
def test_mistakes_are_explained(
    trained: tuple[Path, str],
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An impossible run prints one line on standard error and exits with status 1."""
    status = cifar10.main(["train", "--data", "digits", *arguments, "--runs", str(trained[0])])
    assert status == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_presets_set_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows the values of the requested preset."""
    with pytest.raises(SystemExit):
        cifar10.main(["train", "--preset", "full", "--help"])
    full = cifar10.PRESETS["full"]
    assert f"default: {' '.join(map(str, full.widths))}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_augmented_images_are_shifted_and_mirrored() -> None:
    """Every augmented image is the original, mirrored or not, shifted by at most the crop."""
    images = jax.random.randint(jax.random.key(0), (64, 8, 8, 1), 0, 256).astype(jnp.uint8)
    augmented = np.asarray(cifar10.augment(jax.random.key(1), images, crop=2, flip=True))
    seen = set()
    for image_, result in zip(np.asarray(images), augmented, strict=True):
        for mirrored, source in ((False, image_), (True, image_[:, ::-1])):
            padded = np.pad(source, [(2, 2), (2, 2), (0, 0)], mode="reflect")
            places = [(i, j) for i in range(5) for j in range(5)]
            found = [
                p for p in places if (padded[p[0] : p[0] + 8, p[1] : p[1] + 8] == result).all()
            ]
            seen.update((mirrored, *place) for place in found)
    assert len(seen) > 25  # most of the 50 combinations occur among 64 images


def test_a_batch_is_normalized_by_itself_and_its_filling_is_not_counted() -> None:
    """Train-mode accuracy over vmapped, padded batches matches that of separate batches."""
    dataset = load("digits")
    images, labels = dataset.test_images[:100], dataset.test_labels[:100]
    model = models.CNN(widths=(8,), stem_width=4)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)

    def right(start: int) -> int:
        part = measure.scaled(jnp.asarray(images[start : start + 32]))
        logits, _ = model.apply(variables, part, train=True, mutable=["batch_stats"])
        return int((jnp.asarray(logits).argmax(-1) == labels[start : start + 32]).sum())

    expected = sum(right(start) for start in range(0, 100, 32)) / 100
    got = measure.accuracy_with_batch_statistics(model, variables, images, labels, 32)
    assert got == pytest.approx(expected)


def test_the_gap_is_nothing_when_running_statistics_are_those_of_the_batch() -> None:
    """With momentum 0 the running statistics are the batch's, and the gap is zero only then."""
    dataset = load("digits")
    images, labels = dataset.test_images, dataset.test_labels
    model = models.CNN(widths=(8, 8), stem_width=4, norm=jnl.get_norm("batch", momentum=0.0))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    before = measure.statistics_gap(model, variables, images, labels)
    _, updated = model.apply(
        variables, measure.scaled(jnp.asarray(images)), train=True, mutable=["batch_stats"]
    )
    after = measure.statistics_gap(model, {**variables, **updated}, images, labels)
    assert [gap.layer for gap in after] == [f"NormalizedConv_{i}" for i in range(4)]
    assert all(gap.mean < 1e-3 and gap.std < 1.001 for gap in after)
    assert all(gap.mean > 0.01 for gap in before)


@pytest.mark.usefixtures("users_promotion")
@pytest.mark.parametrize(
    "norm", thorough_but(get_args(jnl.NormName), "batch", "spectral", "evo_s0")
)
def test_every_norm_trains(norm: jnl.NormName) -> None:
    """With each --norm the network learns one batch, and evaluation gives finite logits."""
    settings = cifar10.Settings(norm=norm, widths=(8,), stem_width=8, lr=0.05, crop=0, flip=False)
    dataset = load("digits")
    images, labels = dataset.train_images[:64], dataset.train_labels[:64]
    model = cifar10.build_model(settings, len(dataset.classes))
    state = cifar10.create_state(model, settings, images, steps=60)
    batch = np.int32(0), jnp.asarray(images), jnp.asarray(labels)
    train_step: Any = cifar10.make_train_step(settings, len(dataset.classes))
    # If a norm has its own activation, the maximum is taken of the norm itself. Its gradient finds the
    # largest element only if compiled with users' settings (tests/norms/maxima.py).
    as_users = {"xla_backend_optimization_level": 3} if norm in cifar10.WITH_ACTIVATION else {}
    train_step = train_step.lower(state, *batch).compile(compiler_options=as_users)
    losses = []
    for _ in range(60):
        state = train_step(state, *batch)
        losses.append(cifar10.epoch_averages(state)[0])
        state = state.replace(totals=jnp.zeros(3))
    # Norms that squash each value separately learn slowly at first.
    assert losses[-1] < losses[0] - (0.002 if norm in ("derf", "dynamic_tanh") else 0.05)
    logits = model.apply(state.variables, measure.scaled(jnp.asarray(images)), train=False)
    assert jnp.isfinite(jnp.asarray(logits)).all()


@pytest.mark.usefixtures("users_promotion")
@pytest.mark.parametrize("stem", ["trained", "whitened"])
@pytest.mark.parametrize("way", ["sgd", "muon"])
def test_what_a_step_changes(way: Any, stem: Any) -> None:
    """A whitened stem stays as it is. Muon's updates of a kernel have equal singular values."""
    settings = cifar10.Settings(
        widths=(8,), stem_width=8, optimizer=way, stem=stem, weight_decay=0.0
    )
    images, labels = (a[:64] for a in load("digits")[1:3])
    model = cifar10.build_model(settings, 10)
    state = cifar10.create_state(model, settings, images, steps=60)
    before = jax.device_get(state.params)
    after = cifar10.make_train_step(settings, 10)(state, 0, images, labels).params
    update: Any = jax.tree.map(np.subtract, after, before)
    same = jax.tree.map(lambda a: not a.any(), update[cifar10.STEM])
    assert same == dict.fromkeys(["kernel", "bias"], stem == "whitened")
    kernel = update["NormalizedConv_0"]["Conv_0"]["kernel"].reshape(-1, 8)
    values = np.linalg.svd(kernel, compute_uv=False)
    assert (values.max() < 2 * values.min()) == (way == "muon")
    assert update["Dense_0"]["kernel"].any()


@pytest.mark.usefixtures("users_promotion")
def test_learning_rate_of_biases() -> None:
    """It is a factor for every bias, and for nothing else."""
    images, labels = (a[:64] for a in load("digits")[1:3])

    def updates(bias_lr: float) -> Any:
        settings = cifar10.Settings(widths=(8,), stem_width=8, bias_lr=bias_lr)
        model = cifar10.build_model(settings, 10)
        state = cifar10.create_state(model, settings, images, steps=60)
        before = jax.device_get(state.params)
        after = cifar10.make_train_step(settings, 10)(state, 0, images, labels).params
        return jax.tree.map(np.subtract, after, before)

    def assert_scaled(path: Any, one: np.ndarray, eight: np.ndarray) -> None:
        factor = 8 if path[-1].key == "bias" else 1
        np.testing.assert_allclose(eight, factor * one, rtol=1e-4, atol=1e-7)

    jax.tree.map_with_path(assert_scaled, updates(1.0), updates(8.0))


@pytest.mark.parametrize("flip", [True, False])
def test_average_with_the_mirror_image(flip: bool) -> None:
    """It is measured if training images are mirrored, too."""
    dataset = load("digits")
    images, labels = dataset.test_images[:100], dataset.test_labels[:100]
    settings = cifar10.Settings(widths=(8,), stem_width=8)
    model = cifar10.build_model(settings, 10)
    state = cifar10.create_state(model, settings, images, steps=60)

    def logits(images: np.ndarray) -> np.ndarray:
        x = measure.scaled(jnp.asarray(images))
        return np.asarray(model.apply(state.variables, x, train=False))

    measured = cifar10.evaluate(model, state, images, labels, flip=flip)
    both = logits(images) + logits(images[:, :, ::-1])
    expected = {"mirrored": float(np.mean(both.argmax(-1) == labels))} if flip else {}
    assert {k: v for k, v in measured.items() if k == "mirrored"} == pytest.approx(expected)


@pytest.mark.usefixtures("users_promotion")
def test_a_run_without_running_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no layer has running statistics, the output does not mention statistics of batches."""
    arguments = ["train", *SHORT, "--epochs", "1", "--norm", "group", "--name", "group"]
    assert cifar10.main([*arguments, "--runs", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "group" / "results.json").read_text())
    assert results["batch"] == {} and results["gap"] == []
    assert "statistics of batches" not in capsys.readouterr().out


@pytest.mark.usefixtures("users_promotion")
@pytest.mark.parametrize(
    "norm", thorough_but(["frozen_batch", "ghost_batch", "iterative_whitening"], "frozen_batch")
)
def test_a_run_of_a_norm_with_other_state(
    norm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command works; only batch norm's statistics are compared."""
    arguments = ["train", *SHORT, "--epochs", "1", "--norm", norm, "--name", "other"]
    assert cifar10.main([*arguments, "--runs", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "other" / "results.json").read_text())
    assert results["batch"] == {} and results["gap"] == []
    assert results["running"] > 0.1
