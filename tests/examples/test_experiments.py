"""The experiments run briefly on digits: real code paths, no claim about accuracy."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import (
    batch_size,
    cifar10,
    gan,
    init_and_depth,
    life,
    lr_stress,
    page,
    sequence,
    shift,
    style,
    transfer,
    zoo,
)
from examples.experiment import RESULTS, Experiment, OnImages, main

pytestmark = pytest.mark.usefixtures("users_promotion", "small_network")


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses one convolution per group, since the networks take longer to compile than to run."""
    monkeypatch.setattr(cifar10, "Settings", partial(cifar10.Settings, widths=(8, 16), depth=1))


def run(kind: type[Experiment], out: Path, *arguments: str) -> Any:
    """Runs an experiment and returns its stored results; its pictures must exist."""
    digits = ["--data", "digits"] if issubclass(kind, OnImages) else []
    assert main(kind, kind.__doc__, ["--out", str(out), *digits, *arguments]) == 0
    assert list(out.glob("*.png"))
    assert all(picture.stat().st_size > 10_000 for picture in out.glob("*.png"))
    return json.loads((out / f"{kind.name}.json").read_text())["found"]


@pytest.mark.thorough
def test_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The experiment examines, averages and swaps; statistics of a new network are far off."""
    arguments = ["--epochs", "2", "--looks", "5", "--recalibration", "64", "--parts", "1", "4"]
    found = run(life.Life, tmp_path, *arguments)
    assert [look["step"] for look in found["looks"]] == [5, 44]
    assert found["looks"][0]["kl"] > found["looks"][-1]["kl"] > 0
    assert len(found["averages"]) == 3 + 4
    assert len(found["swaps"]) == 4
    assert set(found["parts"]["4"]) == {"accumulate", "an update for every part"}
    assert "mean KL" in capsys.readouterr().out


@pytest.mark.thorough
def test_transfer(tmp_path: Path) -> None:
    """Every recipe has one result per seed."""
    arguments = ["--epochs", "1", "--images", "64", "--fine-tuning-epochs", "1", "--seeds", "1"]
    found = run(transfer.Transfer, tmp_path, *arguments, "--batch-sizes", "32")
    assert {recipe: len(shares) for recipe, shares in found["32"].items()} == dict.fromkeys(
        transfer.RECIPES, 1
    )


@pytest.mark.thorough
def test_shift(tmp_path: Path) -> None:
    """Every corruption has results for all kinds of statistics, and really changes the images."""
    found = run(shift.Shift, tmp_path, "--epochs", "1", "--images", "128", "--seeds", "2")
    assert set(found) == set(shift.CORRUPTIONS)
    assert {len(shares) for kinds in found.values() for shares in kinds.values()} == {2}
    images = np.full((2, 8, 8, 1), 100, np.uint8)
    images[:, 4:] = 200
    changed = {
        name: (change(images, 0) != images).any() for name, change in shift.CORRUPTIONS.items()
    }
    assert changed == {name: name not in ("clean", "yellow light") for name in shift.CORRUPTIONS}


@pytest.mark.thorough
def test_batch_size(tmp_path: Path) -> None:
    """Both ways of training have three lines for batch norm, and one for group norm, trained only once."""
    found = run(
        batch_size.BatchSize, tmp_path, "--sizes", "8", "64", "--images", "64", "--seeds", "1"
    )
    assert [len(lines) for lines in found.values()] == [3 + 1, 3 + 1]
    assert all(0 <= shares["8"][0] <= 1 for lines in found.values() for shares in lines.values())
    spread, single = found.values()
    assert spread["group"]["8"] == spread["group"]["64"] == single["group"]["64"]
    for line in spread:  # a step of 64 images is the same either way
        assert spread[line]["64"] == single[line]["64"]


@pytest.mark.thorough
def test_lr_stress(tmp_path: Path) -> None:
    """Without a norm, a learning rate of 1,000 breaks training, where the loss rises for good."""
    arguments = ["--steps", "40", "--seeds", "1", "--high", "1000"]
    found = run(lr_stress.LrStress, tmp_path, *arguments)
    assert set(found) == set(lr_stress.NETWORKS)
    assert 0.003 < lr_stress.breaks_at(found["none"][0]) < 1000
    losses = [*[2.0] * 20, 9.0, *[2.0] * 20, *[9.0] * 20, None]
    rates = list(range(len(losses)))
    at = lr_stress.breaks_at({"loss": losses, "rate": rates})
    assert 41 <= at < 44
    assert lr_stress.breaks_at({"loss": [2.0] * 20, "rate": rates}) == np.inf


@pytest.mark.thorough
def test_init_and_depth(tmp_path: Path) -> None:
    """Every network has results for every scale and depth."""
    arguments = ["--scales", "10", "--depths", "1", "--images", "128", "--seeds", "1"]
    found = run(init_and_depth.InitAndDepth, tmp_path, *arguments)
    assert set(found["scale"]) == set(found["depth"]) == set(init_and_depth.NETWORKS)


@pytest.mark.thorough
def test_sequence(tmp_path: Path) -> None:
    """Padding with NaN makes no difference; the sequences are the pixels with ink, and the rest is masked."""
    found = run(sequence.Sequence, tmp_path, "--epochs", "1", "--seeds", "1", "--norms", "batch")
    assert found["padding"] == {kind: [0, 0] for kind in sequence.NETWORKS}
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[0, 1, 2], images[1, 3, 4:6] = 32, 64
    values, counted = sequence.sequences(images)
    np.testing.assert_array_equal(counted, [[True, False], [True, True]])
    np.testing.assert_array_equal(values[counted], [[1, 2, 1], [3, 4, 2], [3, 5, 2]])
    assert np.isnan(values[~counted]).all()


def test_the_page_has_the_stored_numbers() -> None:
    """The pages have the stored numbers and a picture of every experiment."""
    texts = {path: path.read_text() for path in page.PAGES}
    for name in page.EXPERIMENTS:
        assert any(page.section(name) in text for text in texts.values())
    for path, text in texts.items():
        assert page.written(text) == text
        for picture in re.findall(r"\((images/.+?)\)", text):
            assert (path.parent / picture).exists()


def test_the_readme_has_the_stored_runs() -> None:
    """Its table has the accuracy, speed and time of the stored runs of the CIFAR-10 example."""
    lines = (RESULTS.parent / "README.md").read_text().splitlines()
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    table = {row[0]: row[1:] for row in cells if len(row) == 4}
    for column, run in enumerate(("quick", "full", "full-6")):
        found = json.loads((RESULTS / run / "results.json").read_text())
        metrics = (RESULTS / run / "metrics.jsonl").read_text().splitlines()
        seconds = sum(json.loads(line)["seconds"] for line in metrics)
        images = len(metrics) * (50_000 // 64 * 64)
        expected = {
            "running statistics (eval mode)": found["running"],
            "statistics of batches of 512 (train mode)": found["batch"]["512"],
            **{f"statistics of batches of {n}": found["batch"][n] for n in ("32", "8", "2")},
        }
        for name, value in expected.items():
            assert table[name][column] == f"{value:.2%}".replace("%", " %"), (name, run)
        average = table["the same, average over an image and its mirror image"][column]
        assert average == f"{found['mirrored']:.2%}".replace("%", " %")
        speed = table["epochs; training images per second"][column]
        assert speed == f"{len(metrics)}; {images / seconds:.0f}"
        time = table["time of training, without evaluation"][column]
        assert time == f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    wide = json.loads((RESULTS / "wide" / "results.json").read_text())
    row = "(results/wide)) | {running:.2%} | {mirrored:.2%} |".format(**wide)
    assert row.replace("%", " %") in "\n".join(lines)
    for run, count, took in (
        ("wide", 2, "took {1:.0f} and {0:.0f} seconds"),
        ("full", 3, "took {0:.0f} to {2:.0f} seconds each"),
    ):
        metrics = (RESULTS / run / "metrics.jsonl").read_text().splitlines()
        last = sorted(json.loads(line)["seconds"] for line in metrics[-count:])
        assert took.format(*last) in "\n".join(lines)


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing results or data print one line and set the exit status."""
    assert main(shift.Shift, "", ["--redraw", "--out", str(tmp_path)]) == 1
    assert "there is no" in capsys.readouterr().err
    assert main(shift.Shift, "", ["--data", "cifar10", "--data-dir", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_redraw(tmp_path: Path) -> None:
    """Pictures can be drawn again from stored results, without training."""
    shutil.copy(RESULTS / "shift.json", tmp_path)
    assert main(shift.Shift, "", ["--out", str(tmp_path), "--redraw"]) == 0
    assert (tmp_path / "shift.png").exists()


@pytest.mark.thorough
def test_gan(tmp_path: Path) -> None:
    """Both kinds are measured at each rate; the bound is the matrices' product, the distance of Gaussians."""
    arguments = ["--steps", "2", "--seeds", "2", "--batch-size", "8", "--rates", "0.001", "0.01"]
    found = run(gan.Gan, tmp_path, *arguments)
    assert found["measured"].keys() == gan.KINDS.keys() and found["samples"] is None
    assert (tmp_path / "gan_samples.png").exists()
    for of_rates in found["measured"].values():
        for of_seeds in of_rates.values():
            assert of_seeds["step"] == [1, 2]
            assert all(np.shape(of_seeds[what]) == (2, 2) for what in gan.LABELS)

    discriminator = gan.Discriminator(spectral=False)
    variables: Any = jax.vmap(lambda key: discriminator.init(key, jnp.zeros((1, 9)), False))(
        jax.random.split(jax.random.key(0), 2)
    )
    kernels = [layer["kernel"] for _, layer in sorted(variables["params"].items())]
    want = np.prod([np.linalg.norm(kernel, 2, (1, 2)) for kernel in kernels], 0)
    np.testing.assert_allclose(gan.lipschitz_bounds(discriminator, 9, variables), want, rtol=1e-4)

    cloud = np.random.default_rng(0).normal(size=(4000, 3))
    assert abs(gan.frechet(cloud, cloud)) < 1e-6
    np.testing.assert_allclose(gan.frechet(cloud, 2 * cloud + 1), 3 + 3, rtol=0.05)


@pytest.mark.thorough
def test_zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a line for each norm, with the cost of its step."""
    arguments = ["--norms", "batch", "evo_s0", "weight", "--images", "128", "--seeds", "1"]
    found = run(zoo.Zoo, tmp_path, *arguments)
    assert set(found) == {"batch", "evo_s0", "weight"}
    assert all(run["milliseconds"] > 0 and run["megabytes"] > 0 for run in found.values())
    assert "held-out accuracy" in capsys.readouterr().out


@pytest.mark.thorough
def test_style(tmp_path: Path) -> None:
    """AdaIN's features have the given statistics, instance norm's have mean 0 and deviation 1."""
    found = run(style.Style, tmp_path, "--steps", "2", "--patch", "16", "--batch-size", "4")
    assert {len(distances) for distances in found["distance"].values()} == {len(style.WAYS)}
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    mean, std = style.style_of(jnp.flip(x, 0))
    for got, want in zip(style.style_of(style.adain(x, mean, std)), (mean, std), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
