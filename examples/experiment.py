"""Shared code of the experiments: the command line, the data, the stored results and their tables."""

import json
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from .data import DataError, Dataset, load
from .environment import machine_used, versions_used

console = Console()
RESULTS = Path(__file__).parent / "results"

Rows: TypeAlias = Sequence[Sequence[str]]
"""A table: the header, then the rows."""

E = TypeVar("E", bound="Experiment")


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """An experiment: its fields are command-line options, and its results are stored as JSON."""

    name: ClassVar[str]
    """Name of the module and of the stored results."""

    out: Path | None = None
    """Folder for the metrics and plots. If unset: runs/ and the name of the experiment."""
    redraw: bool = False
    """Redraw the plots from the metrics stored in the folder, without training."""

    @abstractmethod
    def load(self) -> Any:
        """Loads the data, which has a `name`."""

    @abstractmethod
    def title(self, dataset: str) -> str:
        """The title of the plots: what was trained on which data."""

    @abstractmethod
    def run(self, dataset: Any) -> Any:
        """Runs the experiment; returns the results, as values that JSON can store and arrays of images."""

    @staticmethod
    @abstractmethod
    def tables(found: Any) -> Mapping[str, Rows]:
        """Tables of the results, by title."""

    @staticmethod
    @abstractmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Draws the plots."""


@dataclass(frozen=True, kw_only=True)
class OnImages(Experiment):
    """An experiment on CIFAR-10 or digits."""

    data: Literal["auto", "cifar10", "digits"] = "auto"
    """CIFAR-10, scikit-learn's 8x8 digits, or (auto) CIFAR-10 if it is available and otherwise digits."""
    data_dir: Path | None = None
    """Folder that contains cifar-10-batches-bin/. If unset: $JAXNORM_DATA, or else a one-time download."""

    def load(self) -> Dataset:
        """Loads the images and labels."""
        return load(self.data, self.data_dir)


def main(kind: type[E], description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Runs an experiment from the command line: prints, stores and plots the results.

    Returns:
        The exit status.
    """
    options = tyro.cli(
        kind,
        prog=f"python -m examples.{kind.name}",
        description=(description or "").split("\n")[0],
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    folder = options.out or Path("runs") / kind.name
    path = folder / f"{kind.name}.json"
    if options.redraw:
        if not path.exists():
            print(
                f"--redraw needs the metrics of an earlier run; there is no {path}", file=sys.stderr
            )
            return 1
        record = json.loads(path.read_text())
    else:
        try:
            dataset = options.load()
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
        console.print(f"{options.title(dataset.name)}. {expected(kind)}", highlight=False)
        start = time.monotonic()
        found = options.run(dataset)
        record = {
            "title": options.title(dataset.name),
            "minutes": round((time.monotonic() - start) / 60, 1),
            "machine": machine_used(),
            "versions": versions_used(),
            "options": settings(options),
            "found": found,
        }
        folder.mkdir(parents=True, exist_ok=True)
        # Images are plotted, not stored.
        path.write_text(json.dumps(record, indent=1, default=lambda image: None) + "\n")
    for title, rows in kind.tables(record["found"]).items():
        console.print(printed(title, rows))
    kind.draw(record["found"], record["title"], folder)
    console.print(f"Metrics and plots are in {folder}/", soft_wrap=True, highlight=False)
    return 0


def expected(kind: type[Experiment]) -> str:
    """Says how long the run with the stored results took."""
    stored = RESULTS / f"{kind.name}.json"
    record = json.loads(stored.read_text()) if stored.exists() else {}
    if "minutes" not in record:
        return "It takes a few minutes."
    return f"With the default options, it took {record['minutes']} minutes on {record['machine']}."


def settings(options: Experiment) -> dict[str, Any]:
    """The options that affect the results."""
    shared = {field.name for field in fields(OnImages)}
    return {name: value for name, value in asdict(options).items() if name not in shared}


def printed(title: str, rows: Rows) -> Table:
    """Returns a table for the terminal."""
    header, *lines = rows
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for line in lines:
        table.add_row(*line)
    return table


def mean_and_range(shares: Sequence[float]) -> str:
    """Formats the mean and the range over the seeds; empty if there are none."""
    if not shares:
        return ""
    mean = statistics.mean(shares)
    return (
        f"{mean:.1%} ({min(shares):.1%} to {max(shares):.1%})" if len(shares) > 1 else f"{mean:.1%}"
    )
