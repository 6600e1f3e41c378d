"""Draws how far Flax's and jaxnorm's results are from float64, in the cases of the README's table.

python -m benchmarks.exactness        # writes docs/images/exactness.svg
"""

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

from benchmarks.peers import CASES, Row

PICTURE = Path(__file__).parents[1] / "docs/images/exactness.svg"
SHOWN = 5  # rows of the README's table
WIDTH, TOP, PITCH = 480, 74, 52
LEFT, RIGHT, NAN = 16, 400, 452  # ends of the axis, and the place of NaN
LOW, HIGH = -8, 3  # powers of ten at the ends
TICKS = {-8: "exact", -6: "10⁻⁶", -4: "10⁻⁴", -2: "1 %", 0: "100 %"}
# A picture has no access to the page's colours, but knows whether the browser prefers dark ones.
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #333 }
.small { font-size: 12px; fill: #666 }
line { stroke: #bbb }
.jaxnorm { fill: #0072b2 } .flax { fill: #d55e00 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .small { fill: #aaa } line { stroke: #666 }
  .jaxnorm { fill: #56b4e9 } .flax { fill: #ff9a5c }
}
"""


def main() -> None:
    """Computes the cases and writes the picture."""
    PICTURE.write_text(picture([case() for case in CASES[:SHOWN]]))


def picture(rows: Iterable[Row]) -> str:
    """Returns an SVG with a line for each case, and a point on it for each library."""
    parts = [
        text(LEFT, 20, "Error relative to float64 (left is better)"),
        '<circle class="jaxnorm" cx="22" cy="41" r="6"/>',
        text(34, 46, "jaxnorm", "jaxnorm"),
        f'<circle class="flax" cx="{NAN - 50}" cy="41" r="6"/>',
        text(NAN - 38, 46, "Flax", "flax"),
    ]
    bottom = TOP
    for row in rows:
        line = bottom + 20
        parts += [
            text(LEFT, bottom + 4, row.case),
            text(NAN + 14, bottom + 4, off(row.flax, row.truth), "flax", "end"),
            f'<line x1="{LEFT}" x2="{NAN}" y1="{line}" y2="{line}"/>',
            *(
                f'<circle class="{name}" cx="{place(value, row.truth)}" cy="{line}" r="6"/>'
                for name, value in (("flax", row.flax), ("jaxnorm", row.jaxnorm))
            ),
        ]
        bottom += PITCH
    for power, label in TICKS.items():
        anchor = "start" if power == LOW else "middle"
        parts.append(text(at(power), bottom, label, "small", anchor))
    parts.append(text(NAN, bottom, "NaN", "small", "middle"))
    size = f'viewBox="0 0 {WIDTH} {bottom + 10}" width="{WIDTH}" height="{bottom + 10}"'
    inside = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{inside}\n</svg>\n'


def text(x: int, y: int, words: str, kind: str = "", anchor: str = "start") -> str:
    """Returns a text element."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def off(value: float, truth: float) -> str:
    """Says how wrong a figure is."""
    if math.isnan(value):
        return "NaN"
    ratio = value / truth
    return f"{ratio:.0f} times too large" if ratio > 2 else f"{100 * abs(ratio - 1):.0f} % off"


def place(value: float, truth: float) -> int:
    """The point on the axis for the relative error of a figure."""
    if math.isnan(value):
        return NAN
    return at(math.log10(max(abs(value / truth - 1), 10.0**LOW)))


def at(power: float) -> int:
    """The point on the axis for a power of ten."""
    return round(LEFT + (RIGHT - LEFT) * (power - LOW) / (HIGH - LOW))


if __name__ == "__main__":
    main()
