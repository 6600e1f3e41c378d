"""The plot of `norms`: each contestant's time and temporaries in every case, by norm."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.cases import NORMS
from benchmarks.contestants import FLAX, LIBRARIES, OURS
from benchmarks.tables import present
from examples import report

# Okabe and Ito's colours, with a different marker for each library.
STYLES = {
    OURS: (report.BLUE, "o"),
    FLAX: (report.GREY, "s"),
    "Flax NNX": ("#56B4E9", "v"),
    "Haiku": ("#E69F00", "^"),
    "Equinox": ("#009E73", "D"),
    "PyTorch": (report.ORANGE, "P"),
}
# Norm, phase and label of each column of the plot.
COLUMNS = (
    *((norm, "both", f"{norm}\ntraining") for norm in NORMS),
    ("batch", "eval", "batch\neval"),
)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws the rows measured with the allocator that keeps its memory."""
    rows = [row for row in found["rows"] if row["allocator"] == "keep"]
    figure, panels = report.new_panels(
        f"Every norm and its peers on {found['machine']}",
        ["Time over Flax Linen's: a point is a shape and a dtype", "Temporaries, in sizes of x"],
    )
    points(panels[0], rows, [n for n in present(rows) if n != FLAX], "over_flax")
    panels[0].axhline(1, color=report.GREY, lw=1)
    panels[0].set_yscale("log", base=2)
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    points(panels[1], rows, [n for n in present(rows) if n != "PyTorch"], "temporaries")
    marks = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    names = [name for name in LIBRARIES if name in marks]
    figure.legend(
        [marks[n] for n in names], names, loc="outside lower left", ncols=6, frameon=False
    )
    report.save(figure, path)


def points(axes: Axes, rows: list[dict[str, Any]], names: list[str], what: str) -> None:
    """Draws a point for each case; the points of a contestant share a vertical line."""
    for place, name in enumerate(names):
        colour, marker = STYLES[name]
        found = [
            (column + 0.8 * ((place + 0.5) / len(names) - 0.5), row["contestants"][name][what])
            for column, (norm, phase, _) in enumerate(COLUMNS)
            for row in rows
            if (row["norm"], row["phase"]) == (norm, phase) and name in row["contestants"]
        ]
        values = [value[1] if isinstance(value, list) else value for _, value in found]
        axes.plot([x for x, _ in found], values, marker, color=colour, ms=5, alpha=0.7, label=name)
    axes.set_xticks(range(len(COLUMNS)), [title for *_, title in COLUMNS])
