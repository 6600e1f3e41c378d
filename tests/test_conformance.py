"""Flax's own tests pass with our classes instead of Flax's, and the harness notices if they are not used."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.modes import MODES, Mode, run
from tests.conformance.plugin import assert_close
from tests.conformance.source import NotToBeHad, flax_source

BUILDS_EACH = """
import flax.linen as nn

def test_builds_each():
    for norm in nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm:
        assert norm().name is None
    assert nn.SpectralNorm(nn.Dense(1)) and nn.WeightNorm(nn.Dense(1))
"""


@pytest.fixture
def flax_tests(tmp_path: Path) -> Iterator[Path]:
    """The folder of Flax's tests, for the duration of a test."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        try:
            yield flax_source(Path(folder))
        except NotToBeHad as error:
            pytest.skip(str(error))


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_flax_tests_pass(mode: Mode, flax_tests: Path) -> None:
    """All of Flax's tests pass, each of our classes is used, and none of the replaced classes is."""
    outcome = run(mode, flax_tests)
    assert not outcome.problems, "\n".join([outcome.output, *outcome.problems])


def test_an_absent_replacement_fails(tmp_path: Path) -> None:
    """The run fails if it used Flax's class or none."""
    (tmp_path / "test_each.py").write_text(BUILDS_EACH)
    mode = Mode("linen alone", ("linen",), ("test_each.py",))
    assert run(mode, tmp_path).problems == []
    outcome = run(mode, tmp_path, leave=["linen.LayerNorm"])
    assert outcome.passed == 1
    assert outcome.problems == [
        "jaxnorm.linen.LayerNorm was never built",
        "flax.linen.LayerNorm was built in spite of its replacement",
    ]


@pytest.mark.parametrize("ours", [1.001, np.nan, np.inf, [1.0]])
def test_close_is_not_anything(ours: object) -> None:
    """With one side replaced, the comparison accepts rounding errors, and numbers instead of NaN."""
    one = np.float32(1)
    assert_close(one, one + np.float32(1e-6))
    assert_close(np.float32(np.nan), one)
    with pytest.raises(AssertionError):
        assert_close(one, np.asarray(ours, np.float32))


def test_without_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the error is one paragraph that quotes pip."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NotToBeHad, match=r"What pip said last: .*No matching distribution"):
        flax_source(tmp_path)
