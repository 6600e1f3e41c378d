"""Writes the summary in the project's README from all stored figures; it measures nothing.

python -m benchmarks.summary
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from statistics import geometric_mean
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.accelerators.tables import PHASES, ratio
from benchmarks.contestants import FLAX, OURS
from benchmarks.tables import NOTHING, PHASE_NAMES
from examples.page import markdown

BOTH = PHASES["both"]
SLOWER = 1.05
"""What is this much more than Flax's is listed."""
CPU, COMPILE = "CPU: time", "CPU: time to compile a training step, once"
TARGETS = {
    **{name.lower(): f"{name}: bytes moved" for name in ("H100", "B200", "A100")},
    **{name: f"TPU {name}: cycles" for name in ("v5e", "v6e", "v5p", "v7")},
}
STEPS = {
    "ResNet-20": "ResNet-20",
    "ResNet-50": "ResNet-50",
    'ResNet-50, activation="relu"': 'ResNet-50, with `activation="relu"` in the norms',
    "block, LayerNorm": "transformer block, layer norm",
    "block, RMSNorm": "transformer block, RMS norm",
    "ViT-S": "ViT-S, layer norm",
    "GPT, RMSNorm": "GPT, RMS norm",
    "U-Net": "U-Net, group norm",
}
TITLES = {"rms": "RMS"}
LAYERS = {
    "batch": "BatchNorm",
    "layer": "LayerNorm",
    "rms": "RMSNorm",
    "group": "GroupNorm",
    "instance": "InstanceNorm",
}


class Figure(NamedTuple):
    """One ratio to Flax: of what, on what, for which program, phase and dtype."""

    column: str
    program: str
    phase: str
    dtype: str
    ratio: float


def steps_on_cpu(found: dict[str, Any]) -> Iterator[Figure]:
    """The ratios of times of whole training steps, with the allocator that keeps its memory."""
    for row in found["rows"]:
        if row["allocator"] == "keep":
            yield Figure(CPU, row["model"], BOTH, row["dtype"], row["ratio"][1])


def norms_on_cpu(found: dict[str, Any]) -> Iterator[Figure]:
    """The ratios of times of norms alone, with the allocator that keeps its memory."""
    for row in found["rows"]:
        if row["allocator"] == "keep" and FLAX in row["contestants"]:
            over = row["contestants"][FLAX]["ours_over"][1]
            name, phase = LAYERS[row["norm"]], PHASE_NAMES[row["phase"]]
            yield Figure(CPU, name, phase, row["dtype"], over)


def on_accelerators(found: dict[str, Any]) -> Iterator[Figure]:
    """The ratios of the compilers' counts; those for different numbers of devices are put together."""
    for row in found["rows"]:
        counted = "moved" if row["jaxnorm"]["cycles"] is None else "cycles"
        over = ratio(row, counted)
        name = re.sub(
            r", \d+ devices, (\w+)", r" over several devices, \1", row["program"].split(" (")[0]
        )
        if over is not None:
            yield Figure(TARGETS[row["target"]], name, PHASES[row["phase"]], row["dtype"], over)


def compiling(found: dict[str, Any]) -> Iterator[Figure]:
    """The ratios of times to compile a training step on a CPU."""
    for row in found["rows"]:
        if "compile" in row["jaxnorm"]:
            over = row["jaxnorm"]["compile"] / row["Flax"]["compile"]
            yield Figure(COMPILE, row["program"], "", "float32", over)


def mean(figures: Iterable[Figure], **wanted: str) -> str:
    """Formats the geometric mean of the figures that have these fields."""
    found = [f.ratio for f in figures if wanted.items() <= f._asdict().items()]
    return f"{geometric_mean(found):.2f}" if found else ""


def steps_table(figures: Sequence[Figure]) -> str:
    """A row for each model."""
    columns = (CPU, TARGETS["h100"], TARGETS["b200"], TARGETS["v5e"])
    rows = (
        [title, *(mean(figures, program=name, column=column) for column in columns)]
        for name, title in STEPS.items()
    )
    return markdown(["a whole training step", *columns], rows)


def norms_table(figures: Sequence[Figure], saved: dict[str, str]) -> str:
    """A row for each norm, forward and backward."""
    columns = (TARGETS["h100"], TARGETS["v5e"])
    dtypes = ("float32", "bfloat16")

    def row(norm: str, layer: str) -> list[str]:
        of_layer = [f for f in figures if f.program == layer and f.phase == BOTH]
        on_cpu = (mean(of_layer, column=CPU, dtype=dtype) for dtype in dtypes)
        return [
            f"{TITLES.get(norm, norm)} norm",
            *on_cpu,
            saved[norm],
            *(mean(of_layer, column=c) for c in columns),
        ]

    header = ["a norm, forward and backward", *(f"{CPU}, {dtype}" for dtype in dtypes)]
    header += ["CPU: saved for backward, jaxnorm / Flax", *columns]
    return markdown(header, (row(*pair) for pair in LAYERS.items()))


def most_saved(found: dict[str, Any]) -> dict[str, str]:
    """What each norm keeps for the backward pass at most, ours and Flax's, for large shapes."""

    def most(norm: str, name: str) -> float:
        return max(
            row["contestants"][name]["saved"]
            for row in found["rows"]
            if (row["norm"], row["phase"], row["size"]) == (norm, "both", "large")
        )

    return {norm: f"{most(norm, OURS):.1f} N / {most(norm, FLAX):.1f} N" for norm in LAYERS}


def slower(figures: Sequence[Figure]) -> str:
    """A line for each column, with all programs that cost noticeably more than Flax's."""
    lines = []
    for column in dict.fromkeys(f.column for f in figures):
        groups: dict[str, dict[tuple[str, str], list[float]]] = {}
        for f in figures:
            if f.column == column:
                groups.setdefault(f.program, {}).setdefault((f.phase, f.dtype), []).append(f.ratio)
        worst = {name: max(map(geometric_mean, of.values())) for name, of in groups.items()}
        found = {name: value for name, value in worst.items() if value >= SLOWER}
        text = "; ".join(f"{name} {value:.2f}" for name, value in found.items())
        if len(found) == len(worst):
            text = f"{min(found.values()):.2f} to {max(found.values()):.2f}"
        if found:
            lines.append(f"- {column}: {text}")
    return "\n".join(lines)


def section() -> str:
    """Returns the summary: of a CPU, the figures of the oldest stored versions."""
    stored = {what: results.stored(what) for what in ("norms", "steps", "tracing")}
    if not all(stored.values()):
        return NOTHING
    norms, steps, tracing = (found[0] for found in stored.values())
    of_norms = [*norms_on_cpu(norms)]
    for found in results.stored("accelerators"):
        of_norms += on_accelerators(found)
    figures = [*of_norms, *steps_on_cpu(steps), *compiling(tracing)]
    parts = [
        steps_table(figures),
        norms_table(of_norms, most_saved(norms)),
        f"These cost at least {SLOWER} times as much as with Flax, in the worst phase and dtype:",
        slower(figures),
        f"<sub>Geometric means over shapes. CPU: {norms['machine']}; {norms['versions']}</sub>",
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Writes the summary."""
    results.into_page("summary", lambda _: section(), results.PROJECT_README)


if __name__ == "__main__":
    main()
