"""Writes the tables of the documentation from the stored metrics of the experiments.

python -m examples.page          # after results/ has changed
"""

import importlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .experiment import RESULTS, Experiment, settings

# Of each stored result. That of other options than the defaults is named after the module, a hyphen and more.
EXPERIMENTS = {
    "lr_stress": "LrStress",
    "batch_size": "BatchSize",
    "init_and_depth": "InitAndDepth",
    "life": "Life",
    "shift": "Shift",
    "transfer": "Transfer",
    "sequence": "Sequence",
    "gan": "Gan",
    "gan-one-step": "Gan",
    "style": "Style",
    "zoo": "Zoo",
}
PAGES = [Path(__file__).parents[1] / "docs" / name for name in ("measured.md", "zoo.md")]


def main() -> None:
    """Updates the tables on all pages."""
    for page in PAGES:
        page.write_text(written(page.read_text()))


def written(page: str) -> str:
    """Returns the page with the tables of all stored results."""
    for name in EXPERIMENTS:
        page = with_section(page, name, section(name))
    return page


def section(name: str) -> str:
    """Returns the command, duration, machine and versions of an experiment, and its tables."""
    module = importlib.import_module(f"examples.{name.partition('-')[0]}")
    kind: type[Experiment] = getattr(module, EXPERIMENTS[name])
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    parts = [
        f"`{command(kind, record['options'])}`: {record['minutes']} minutes on {record['machine']}; "
        f"{record['versions']}."
    ]
    for title, (header, *rows) in kind.tables(record["found"]).items():
        parts += [f"**{title}**", markdown(header, rows)]
    return "\n\n".join(parts)


def command(kind: type[Experiment], options: dict[str, Any]) -> str:
    """Returns the command that runs an experiment with these options."""
    defaults = json.loads(json.dumps(settings(kind())))  # tuples become lists, as in stored options
    changed = [
        f" --{option.replace('_', '-')} {value}"
        for option, value in options.items()
        if value != defaults[option]
    ]
    return f"python -m examples.{kind.name}{''.join(changed)}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def with_section(page: str, what: str, section: str) -> str:
    """Returns the page with `section` between the markers of `what`."""
    start, end = rf"<!-- {re.escape(what)}: written by [^>]+ -->\n", f"<!-- end of {what} -->\n"
    pattern = rf"({start}).*?{re.escape(end)}"
    return re.sub(pattern, lambda mark: f"{mark[1]}\n{section}\n\n{end}", page, flags=re.S)


if __name__ == "__main__":
    main()
