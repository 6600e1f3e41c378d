"""The experiments run, on digits and briefly: real code paths, no claim about accuracy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import batch_size, life, lr_stress, shift, transfer

pytestmark = pytest.mark.usefixtures("users_promotion")


def run(main: Callable[[list[str]], int], out: Path, *arguments: str) -> Any:
    """What the example stored; its pictures must be there."""
    assert main(["--data", "digits", "--out", str(out), *arguments]) == 0
    (stored,) = out.glob("*.json")
    assert all(picture.stat().st_size > 10_000 for picture in out.glob("*.png"))
    assert list(out.glob("*.png"))
    return json.loads(stored.read_text())


def test_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It looks, averages, swaps; the running statistics of a new network are far off."""
    found = run(life.main, tmp_path, "--epochs", "2", "--looks", "5", "20", "--recalibration", "64")
    assert [look["step"] for look in found["looks"]] == [5, 20, 44]
    assert found["looks"][0]["kl"] > found["looks"][-1]["kl"] > 0
    assert len(found["averages"]) == 3 + 4
    assert len(found["swaps"]) == 4
    assert set(found["parts"]["4"]) == {"accumulate", "an update for every part"}
    assert "mean KL" in capsys.readouterr().out


def test_transfer(tmp_path: Path) -> None:
    """Every recipe, once for each seed."""
    arguments = ["--epochs", "1", "--images", "64", "--fine-tuning-epochs", "1", "--seeds", "1"]
    found = run(transfer.main, tmp_path, *arguments, "--batch-sizes", "32")
    assert {recipe: len(shares) for recipe, shares in found["32"].items()} == dict.fromkeys(
        transfer.RECIPES, 1
    )


def test_shift(tmp_path: Path) -> None:
    """Every corruption with every kind of statistics; it really changes the images."""
    found = run(shift.main, tmp_path, "--epochs", "1", "--images", "128")
    assert set(found) == set(shift.CORRUPTIONS)
    images = np.full((2, 8, 8, 1), 100, np.uint8)
    images[:, 4:] = 200
    changed = {
        name: (change(images, 0) != images).any() for name, change in shift.CORRUPTIONS.items()
    }
    assert changed == {name: name not in ("clean", "yellow light") for name in shift.CORRUPTIONS}


def test_batch_size(tmp_path: Path) -> None:
    """A line for each norm, three for batch norm, and two for eight devices."""
    arguments = ["--sizes", "8", "32", "--norms", "batch", "group", "--images", "256"]
    found = run(batch_size.main, tmp_path, *arguments)
    assert len(found) == 3 + 1 + 2
    assert all(0 <= share <= 1 for shares in found.values() for share in shares.values())


def test_lr_stress(tmp_path: Path) -> None:
    """Without a norm, a learning rate of 1,000 breaks it; the place is where the loss leaves for good."""
    arguments = ["--steps", "40", "--seeds", "1", "--high", "1000"]
    found = run(lr_stress.main, tmp_path, *arguments)
    assert set(found) == set(lr_stress.NETWORKS)
    assert 0.003 < lr_stress.breaks_at(found["none"][0], 10) < 1000
    losses = [*[2.0] * 20, 9.0, *[2.0] * 20, *[9.0] * 20, None]
    rates = list(range(len(losses)))
    at = lr_stress.breaks_at({"loss": losses, "rate": rates}, 10)
    assert 41 <= at < 44
    assert lr_stress.breaks_at({"loss": [2.0] * 20, "rate": rates}, 10) == np.inf
