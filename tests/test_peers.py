"""Where Flax is wrong: each row of the tables in the README and on the page of the benchmarks, by name."""

import math
import re
from html import unescape
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import exactness, peers

ROOT = Path(peers.__file__).parents[1]


def rows_of(page: str) -> list[list[str]]:
    """The cells of each row of the page's table."""
    pattern = r"^\| \| \| Flax \| jaxnorm \| float64 \|\n.*\n((?:\|.*\n)*)"
    (table,) = re.findall(pattern, (ROOT / page).read_text(), re.M)
    return [line.strip("| ").split(" | ") for line in table.splitlines()]


@pytest.mark.every_case
@pytest.mark.parametrize("case", peers.CASES, ids=lambda case: case.__name__)
def test_right_where_flax_is_wrong(case) -> None:
    """Our figure matches float64 to 1e-3, and Flax's does not (else the row must go); the table has both."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        row = case()
    np.testing.assert_allclose(row.jaxnorm, row.truth, rtol=1e-3)
    assert math.isnan(row.flax) or abs(row.flax / row.truth - 1) > 0.1
    (found,) = (cells for cells in rows_of("benchmarks/README.md") if cells[0] == row.case)
    assert found[1] == row.figure
    flax, *others = map(float, found[2:])
    np.testing.assert_allclose(others, (row.jaxnorm, row.truth), rtol=2e-3)
    np.testing.assert_allclose(
        flax, row.flax, rtol=0.5, atol=1e-3
    )  # how wrong depends on the compiler


def test_the_readme_has_the_first_rows() -> None:
    """The README has the first rows of the benchmarks' table."""
    every = rows_of("benchmarks/README.md")
    assert len(every) == len(peers.CASES) and every[:5] == rows_of("README.md")


def test_the_picture_has_the_same_rows() -> None:
    """The picture has a line for each row of the README, with our point to the left of Flax's."""
    svg = exactness.PICTURE.read_text()
    texts = list(map(unescape, re.findall(r"<text [^>]*>(.*?)</text>", svg)))
    names = [row[0] for row in rows_of("README.md")]
    assert [words for words in texts if words in names] == names
    points = {
        kind: list(map(int, re.findall(rf'<circle class="{kind}" cx="(\d+)"', svg)))[1:]
        for kind in ("jaxnorm", "flax")
    }
    assert len(points["jaxnorm"]) == len(points["flax"]) == len(names)
    assert max(points["jaxnorm"]) < min(points["flax"])


def test_the_picture_says_how_wrong() -> None:
    """Errors are put into words, and those beyond the ends of the axis are drawn at its ends."""
    assert exactness.off(math.nan, 1) == "NaN"
    assert exactness.off(0.5, 1) == "50 % off"
    assert exactness.off(300, 1) == "300 times too large"
    assert exactness.place(1, 1) == exactness.LEFT and exactness.place(1001, 1) == exactness.RIGHT
    assert exactness.place(math.nan, 1) == exactness.NAN
