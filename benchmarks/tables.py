"""The tables of `norms` in Markdown, for printing and for the pages."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import geometric_mean
from typing import Any, TypeAlias

from benchmarks.cases import DTYPES, NORMS, PHASES
from benchmarks.contestants import FLAX, LIBRARIES, OURS
from examples.page import markdown

Row: TypeAlias = dict[str, Any]
PHASE_NAMES = {"eval": "evaluation", "forward": "forward", "both": "forward and backward"}
ALLOCATORS = {
    "keep": "With an allocator that keeps its memory",
    "default": "With glibc's default allocator",
}
ALL, BOTH = "all norms", "both"
NOTHING = "Nothing is stored yet."
MISSING = "–"


def medians(rows: Iterable[Row], name: str, ratio: str) -> list[float]:
    """Returns the medians of a contestant's ratio in all rows that have it."""
    of_rows = (row["contestants"].get(name, {}).get(ratio) for row in rows)
    return [quartiles[1] for quartiles in of_rows if quartiles]


def mean_and_largest(values: Sequence[float]) -> str:
    """Formats the geometric mean, with the largest value in parentheses."""
    return f"{geometric_mean(values):.2f} ({max(values):.2f})" if values else MISSING


def present(rows: Sequence[Row]) -> list[str]:
    """Returns the libraries that took part, in the order of `LIBRARIES`."""
    return [name for name in LIBRARIES if any(name in row["contestants"] for row in rows)]


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, list[Row]]]:
    """Yields norm, phase, dtype and their rows, also for both dtypes and all norms if there are several."""
    for norm in (*NORMS, ALL):
        for phase in PHASES:
            for dtype in (*DTYPES, BOTH):
                chosen = [
                    row
                    for row in rows
                    if row["phase"] == phase
                    and norm in (row["norm"], ALL)
                    and dtype in (row["dtype"], BOTH)
                ]
                several_norms = len({row["norm"] for row in chosen}) > 1
                several_dtypes = len({row["dtype"] for row in chosen}) > 1
                if chosen and (norm != ALL or several_norms) and (dtype != BOTH or several_dtypes):
                    yield norm, phase, dtype, chosen


def summary(rows: Sequence[Row], names: Sequence[str], ratio: str) -> str:
    """A table of geometric means over the shapes."""
    return markdown(
        ["norm", "", "dtype", *names],
        (
            [
                norm,
                PHASE_NAMES[phase],
                dtype,
                *(mean_and_largest(medians(chosen, name, ratio)) for name in names),
            ]
            for norm, phase, dtype, chosen in groups(rows)
        ),
    )


def ours_and_flax(row: Row, what: str) -> str:
    """Formats one of the compiler's counts, in multiples of the size of x."""
    counts = (row["contestants"].get(name, {}).get(what) for name in (OURS, FLAX))
    return " / ".join(MISSING if n is None else f"{n:.1f}" for n in counts)


def with_quartiles(contestant: dict[str, Any]) -> str:
    """Formats our time relative to a contestant's."""
    if not contestant:
        return MISSING
    low, middle, high = contestant["ours_over"]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def details(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """A table with a row for each case."""
    return markdown(
        [
            "norm",
            "",
            "x",
            "dtype",
            "ms",
            "of copy bandwidth",
            *peers,
            "saved, ours / Flax",
            "temporary",
            "read and written",
            "floor",
        ],
        (
            [
                row["norm"],
                PHASE_NAMES[row["phase"]],
                f"{tuple(row['shape'])}, {row['size']}",
                row["dtype"],
                f"{row['contestants'][OURS]['milliseconds']:.3g}",
                f"{row['contestants'][OURS]['of_copy']:.0%}",
                *(with_quartiles(row["contestants"].get(name, {})) for name in peers),
                *(ours_and_flax(row, w) for w in ("saved", "temporaries", "bytes_accessed")),
                str(row["floor"]),
            ]
            for row in rows
        ),
    )


def left_out(rows: Sequence[Row]) -> list[str]:
    """Says what is not compared and why, without repetitions."""
    notes = [
        f"Left out, {name}, {row['norm']} norm in {row['dtype']}, {PHASE_NAMES[row['phase']]}: {why}."
        for row in rows
        for name, why in row["left_out"].items()
    ]
    return list(dict.fromkeys(notes))


def norms(found: dict[str, Any], fold: bool = False) -> str:
    """All tables of one machine and set of versions; with `fold`, the tables of cases are collapsed."""
    parts = [f"{found['machine']}; {found['versions']}"]
    if found["not_installed"]:
        parts.append(f"Not installed, or not for this device: {', '.join(found['not_installed'])}.")
    parts += left_out(found["rows"])
    for allocator, title in ALLOCATORS.items():
        rows = [row for row in found["rows"] if row["allocator"] == allocator]
        if not rows:
            continue
        names = present(rows)
        peers = [name for name in names if name != OURS]
        cases = details(rows, peers)
        parts += [
            f"**{title}**, {rows[0]['rounds']} rounds. Time of jaxnorm over that of each, geometric"
            " mean over the shapes (the largest of them):",
            summary(rows, peers, "ours_over"),
        ]
        if FLAX in peers:
            parts += [
                f"Time of each over that of {FLAX}:",
                summary(rows, [name for name in names if name != FLAX], "over_flax"),
            ]
        intro = "Case by case: time of jaxnorm over that of each, with quartiles"
        parts += (
            [f"<details><summary>{intro}</summary>", cases, "</details>"]
            if fold
            else [f"{intro}:", cases]
        )
    return "\n\n".join(parts)


def norms_section(stored: Sequence[dict[str, Any]]) -> str:
    """Returns the section of the page with all stored figures."""
    return "\n\n".join(norms(found, fold=True) for found in stored) or NOTHING


def headline(found: dict[str, Any]) -> str:
    """A row for each norm: forward and backward in training, with the allocator that keeps its memory."""

    def most(rows: Sequence[Row], what: str) -> str:
        """Formats our largest count and Flax's over the large shapes, in multiples of the size of x."""
        large = [row["contestants"] for row in rows if row["size"] == "large"]
        counts = ([found[name][what] for found in large] for name in (OURS, FLAX))
        return " / ".join(f"{max(n):.1f} N" for n in counts)

    rows = [r for r in found["rows"] if r["phase"] == "both" and r["allocator"] == "keep"]
    of_norms = [[r for r in rows if r["norm"] == norm] for norm in NORMS]
    return markdown(
        [
            "norm",
            *(f"time / Flax's, {dtype}" for dtype in DTYPES),
            "saved, ours / Flax, at most (large shapes)",
            "temporary, likewise",
        ],
        (
            [
                of_norm[0]["norm"],
                *(
                    mean_and_largest(
                        medians((r for r in of_norm if r["dtype"] == dtype), FLAX, "ours_over")
                    )
                    for dtype in DTYPES
                ),
                most(of_norm, "saved"),
                most(of_norm, "temporaries"),
            ]
            for of_norm in of_norms
            if of_norm
        ),
    )


def headline_section(stored: Sequence[dict[str, Any]]) -> str:
    """Returns the section of the documentation: the figures of the oldest stored versions."""
    return (
        f"{stored[0]['versions']}; {stored[0]['machine']}\n\n{headline(stored[0])}"
        if stored
        else NOTHING
    )


def progress(row: Row) -> str:
    """Formats one case as a line."""
    ratios = ", ".join(
        f"{contestant['ours_over'][1]:.2f} of the time of {name}"
        for name, contestant in row["contestants"].items()
        if name != OURS
    )
    copy = f"{row['contestants'][OURS]['of_copy']:.0%} of copy bandwidth"
    where = f"{row['norm']} {row['phase']} {tuple(row['shape'])} {row['dtype']}"
    return f"{where}: {copy}; {ratios}"
