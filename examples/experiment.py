"""What the experiments have in common: a command line, the data, a record of what was found, its tables."""

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
"""A table: its header and its lines."""

E = TypeVar("E", bound="Experiment")


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """An experiment: its fields are its options, and what it returns is stored as JSON."""

    name: ClassVar[str]
    """Of the module, and of what it stores."""

    out: Path | None = None
    """The folder for the metrics and the pictures [unset: runs/ and the name of the experiment]."""
    redraw: bool = False
    """Draw the metrics that are stored in the folder again, and train nothing."""

    @abstractmethod
    def load(self) -> Any:
        """The data; it has a name."""

    @abstractmethod
    def title(self, dataset: str) -> str:
        """What was trained on what, for the pictures."""

    @abstractmethod
    def run(self, dataset: Any) -> Any:
        """Everything that is found, as JSON can hold it; and arrays of images."""

    @staticmethod
    @abstractmethod
    def tables(found: Any) -> Mapping[str, Rows]:
        """Tables of it, by title."""

    @staticmethod
    @abstractmethod
    def draw(found: Any, title: str, folder: Path) -> None:
        """Its pictures."""


@dataclass(frozen=True, kw_only=True)
class OnImages(Experiment):
    """An experiment on CIFAR-10, if it is there."""

    data: Literal["auto", "cifar10", "digits"] = "auto"
    """CIFAR-10, scikit-learn's 8x8 digits, or CIFAR-10 if it can be had and else digits."""
    data_dir: Path | None = None
    """Folder that holds cifar-10-batches-bin/ [unset: $JAXNORM_DATA, or it is downloaded once]."""

    def load(self) -> Dataset:
        """Images and labels."""
        return load(self.data, self.data_dir)


def main(kind: type[E], description: str | None, arguments: Sequence[str] | None = None) -> int:
    """The command line of an experiment: runs it, prints and stores what it finds, and draws it.

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
        # Images are drawn, not stored.
        path.write_text(json.dumps(record, indent=1, default=lambda image: None) + "\n")
    for title, rows in kind.tables(record["found"]).items():
        console.print(printed(title, rows))
    kind.draw(record["found"], record["title"], folder)
    console.print(f"Metrics and pictures are in {folder}/", soft_wrap=True, highlight=False)
    return 0


def expected(kind: type[Experiment]) -> str:
    """How long the run whose results are kept took."""
    stored = RESULTS / f"{kind.name}.json"
    record = json.loads(stored.read_text()) if stored.exists() else {}
    if "minutes" not in record:
        return "It takes some minutes."
    return f"With its defaults it took {record['minutes']} minutes on {record['machine']}."


def settings(options: Experiment) -> dict[str, Any]:
    """The options that make a difference to what is found."""
    shared = {field.name for field in fields(OnImages)}
    return {name: value for name, value in asdict(options).items() if name not in shared}


def printed(title: str, rows: Rows) -> Table:
    """A table for the terminal."""
    header, *lines = rows
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for line in lines:
        table.add_row(*line)
    return table


def mean_and_range(shares: Sequence[float]) -> str:
    """Over the seeds; empty if there are none."""
    if not shares:
        return ""
    mean = statistics.mean(shares)
    return (
        f"{mean:.1%} ({min(shares):.1%} to {max(shares):.1%})" if len(shares) > 1 else f"{mean:.1%}"
    )
