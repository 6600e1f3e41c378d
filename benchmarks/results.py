"""Stores the figures of the benchmarks, and writes their tables to the pages that show them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from examples.page import with_section

HERE = Path(__file__).parent
RESULTS, PICTURES = HERE / "results", HERE.parent / "docs" / "images"
# A summary, what users want to know, what norms move, single questions, and all cases.
PROJECT_README = HERE.parent / "README.md"
PERFORMANCE = HERE.parent / "docs" / "performance.md"
COSTS = HERE.parent / "docs" / "what-a-norm-costs.md"
README = HERE / "README.md"
TABLES = HERE / "tables.md"
# What identifies the program of a row, in any of the benchmarks.
PROGRAM = (
    *("target", "allocator", "name", "program", "model", "modules", "network", "layer"),
    *("norm", "shape", "phase", "dtype", "batch", "jitted"),
)


def with_others(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Adds the rows at ``path`` of the same machine and versions whose program was not measured now.

    Several rows may have the same program. Rows that replace others take their place.
    """

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row.get(name)) for name in PROGRAM)

    old = json.loads(path.read_text()) if path.exists() else {}
    if any(old.get(name) != found.get(name) for name in ("machine", "versions")):
        return found
    now = {key(row) for row in found["rows"]}
    others = [row for row in old["rows"] if key(row) not in now]
    order = list(dict.fromkeys(map(key, old["rows"] + found["rows"])))
    return {**found, "rows": sorted(others + found["rows"], key=lambda row: order.index(key(row)))}


def keep(what: str, found: dict[str, Any]) -> dict[str, Any]:
    """Stores figures; keeps those of other programs if they have the same machine and versions.

    Returns:
        All figures that are stored now.
    """
    path = RESULTS / f"{what}-{jax.default_backend()}-jax{jax.__version__}.json"
    found = with_others(found, path)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def stored(what: str) -> list[dict[str, Any]]:
    """Returns the figures of every backend and version."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{what}-*.json"))]


def into_page(what: str, section: Callable[[list[dict[str, Any]]], str], page: Path) -> None:
    """Writes the tables of the stored figures between the marks on a page."""
    page.write_text(with_section(page.read_text(), what, section(stored(what))))
