"""The tables of what compilers say of their programs. Ratios are ours over Flax Linen's."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from examples.page import markdown

from .programs import FLOORS, SHAPES

Row: TypeAlias = dict[str, Any]
NOTHING = "Not compiled yet: `make accelerators`."
HEADER = [
    "target",
    "program",
    "dtype",
    "phase",
    "cycles",
    "kernels (ours)",
    "bytes moved (ours)",
    "floor",
    "temporaries, ours / Flax's",
    "collectives, ours / Flax's",
]
PHASES = {"evaluation": "evaluation", "forward": "forward", "both": "forward and backward"}


def line(row: Row) -> list[str]:
    """A program on a target."""
    ours, flax, unit = row["jaxnorm"], row["Flax"], row["unit"]
    cycles = ratio(row, "cycles")
    return [
        row["target"],
        row["program"],
        row["dtype"],
        PHASES[row["phase"]],
        "" if cycles is None else f"{cycles:.2f}",
        f"{ratio(row, 'kernels'):.2f} ({ours['kernels']})",
        f"{ratio(row, 'moved'):.2f} ({ours['moved'] / unit:.1f} N)",
        "" if row["floor"] is None else f"{row['floor']:.3g} N",
        f"{ours['temporaries'] / unit:.1f} / {flax['temporaries'] / unit:.1f} N",
        f"{collectives(ours)} / {collectives(flax)}",
    ]


def ratio(row: Row, what: str) -> float | None:
    """Ours over Flax's; None if the compiler does not say."""
    ours, flax = row["jaxnorm"][what], row["Flax"][what]
    return None if ours is None else ours / max(flax, 1)


def collectives(account: Row) -> str:
    """How many, of how many bytes together."""
    found = account["collectives"]
    size = sum(c["bytes"] for c in found) / 1024
    return (
        f"{len(found)} {', '.join(sorted({c['op'] for c in found}))}, {size:.0f} KiB"
        if found
        else "none"
    )


def details(found: dict[str, Any]) -> str:
    """Every program on every target."""
    rows, header, lines = found["rows"], HEADER, [line(row) for row in found["rows"]]
    if any(row["seconds"] for row in rows):
        header = [*header, "time, on a device"]
        lines = [[*cells, time_of(row)] for cells, row in zip(lines, rows, strict=True)]
    return f"{found['versions']}\n\n{markdown(header, lines)}"


def time_of(row: Row) -> str:
    """Ours over Flax's, where the program was run."""
    seconds = row["seconds"]
    return f"{seconds['jaxnorm'] / seconds['Flax']:.2f}" if seconds else ""


def lines_of(rows: Sequence[Row]) -> Iterator[list[str]]:
    """For each program and phase the geometric means over shapes and dtypes, of each target."""
    measures = ("cycles",) if has_cycles(rows) else ("moved", "kernels")
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        key = row["program"].split(" (")[0], PHASES[row["phase"]]
        groups.setdefault(key, {}).setdefault(row["target"], []).append(row)
    for key, by_target in groups.items():
        found = (by_target.get(target, []) for target in targets_of(rows))
        yield [
            *key,
            *(
                " / ".join(mean(ratio(r, what) for r in alike) for what in measures)
                for alike in found
            ),
        ]


def targets_of(rows: Sequence[Row]) -> list[str]:
    """In the order in which they were compiled for."""
    return list(dict.fromkeys(row["target"] for row in rows))


def has_cycles(rows: Sequence[Row]) -> bool:
    """Whether the compiler estimates time."""
    return ratio(rows[0], "cycles") is not None


def mean(ratios: Iterable[float | None]) -> str:
    """The geometric mean of those that are known."""
    known = [math.log(r) for r in ratios if r is not None]
    return f"{math.exp(sum(known) / len(known)):.2f}" if known else ""


def summary(found: dict[str, Any]) -> str:
    """A line for each program and phase."""
    rows = found["rows"]
    what = "estimated cycles" if has_cycles(rows) else "bytes moved / kernels"
    table = markdown([what, "", *targets_of(rows)], lines_of(rows))
    return f"{found['versions']}\n\n{table}"


def section(stored: Sequence[dict[str, Any]]) -> str:
    """Every program, in one table for each platform."""
    return "\n\n".join(map(details, stored)) or NOTHING


def summary_section(stored: Sequence[dict[str, Any]]) -> str:
    """What the documentation opens with."""
    return "\n\n".join(map(summary, stored)) or NOTHING


def moved_section(stored: Sequence[dict[str, Any]]) -> str:
    """What each norm reads and writes of a large x in bfloat16; on each platform, for its first target."""
    rows = [row for found in stored for row in found["rows"] if row["dtype"] == "bfloat16"]
    firsts = list(dict.fromkeys(targets_of(found["rows"])[0] for found in stored))
    by_program = {(row["target"], row["program"], row["phase"]): row for row in rows}
    lines = []
    for name, phases in FLOORS.items():
        for phase, floor in phases.items():
            program = f"{name} {SHAPES[name][0]}", phase
            cells = (moved(by_program.get((target, *program))) for target in firsts)
            lines.append([name, PHASES[phase], f"{floor} N", *cells])
    header = ["norm", "", "at least", *(f"{target}, jaxnorm / Flax" for target in firsts)]
    return markdown(header, lines) if stored else NOTHING


def moved(row: Row | None) -> str:
    """What ours and Flax's read and write; empty if that is not known."""
    if row is None:
        return ""
    ours, flax = (row[library]["moved"] / row["unit"] for library in ("jaxnorm", "Flax"))
    return f"{ours:.1f} N / {flax:.1f} N"
