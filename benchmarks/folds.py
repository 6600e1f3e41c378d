"""How sums over an activation are best written for XLA on a CPU: as they are, and in other ways.

    python -m benchmarks.folds
    python -m benchmarks.folds --norms layer rms --sizes large --no-quick

Forward and backward in training; the time of each way over that of the library as it is, geometric means over
the shapes, and the most temporary memory. Prints only.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import geometric_mean, median
from unittest.mock import patch

import jax
import tyro

from benchmarks import measure
from benchmarks.cases import DTYPES, NORMS, SIZES, Norm, Size, cases, draw
from benchmarks.contestants import ours
from benchmarks.environment import run_under
from benchmarks.tables import markdown
from examples.environment import machine_used, versions_used
from jaxnorm.core import _cpu_sums, _normalize, _reduce

ROUNDS = 7
AS_IT_IS = "as it is"


def at_most(length: int) -> dict[str, object]:
    """Folds of so many elements, whatever is computed."""
    limit = ((math.inf, length),)
    return {"_LONGEST": limit, "_LONGEST_IN_A_ROW": limit}


# What is replaced in the modules that take the sums.
WAYS: dict[str, dict[str, object]] = {
    AS_IT_IS: {},
    "plain sums": {"sums_on_cpu": lambda *a, **how: _reduce._plain(*a, partitions=(), **how)},
    "folds of 8 at most": at_most(8),
    "folds of 16 at most": at_most(16),
    "folds of 32 at most": at_most(32),
    "rows in long steps": {"_STEP": math.inf},
    "small arrays not stored first": {"stored": lambda small, after=None: small},
}


@contextmanager
def written(way: str) -> Iterator[None]:
    """The library with these things replaced."""
    with ExitStack() as stack:
        for name, value in WAYS[way].items():
            for module in (_cpu_sums, _reduce, _normalize):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, value))
        jax.clear_caches()
        yield
    jax.clear_caches()


def compare(norm: Callable[[], measure.Program]) -> dict[str, tuple[float, float]]:
    """Time over that of the library as it is, and temporaries."""
    programs = {}
    for way in WAYS:
        with written(way):
            programs[way] = norm()
    times = measure.in_turns(programs, ROUNDS)
    return {
        way: (median(times[way] / times[AS_IT_IS]), program.counted["temporaries"])
        for way, program in programs.items()
    }


@dataclass(frozen=True)
class Options:
    """What is measured."""

    norms: tuple[Norm, ...] = NORMS
    """Which norms."""
    sizes: tuple[Size, ...] = SIZES
    """Which of the shapes."""
    quick: bool = True
    """One shape of each size."""


def main(options: Options) -> None:
    """Print the table in Markdown."""
    print(f"{machine_used()}; {versions_used()}\n")
    lines = []
    for norm in options.norms:
        for dtype in DTYPES:
            found = []
            for case in cases((norm,), options.sizes, options.quick):
                data = draw(case, dtype)
                forward = ours(case, True)
                found.append(compare(lambda f=forward, d=data: measure.in_jax(f, "both", d)))
            columns = []
            for way in WAYS:
                ratios, temporaries = zip(*(of_case[way] for of_case in found), strict=True)
                columns.append(f"{geometric_mean(ratios):.2f} ({max(temporaries):.1f} N)")
            lines.append([norm, dtype, *columns])
    print(markdown(["norm", "dtype", *WAYS], lines))


if __name__ == "__main__":
    chosen = tyro.cli(
        Options,
        prog="python -m benchmarks.folds",
        description=(__doc__ or "").split("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run_under("keep")
    main(chosen)
