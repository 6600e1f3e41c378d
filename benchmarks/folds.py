"""Compares ways to write sums over an activation for XLA on a CPU: as in the library, and alternatives.

    python -m benchmarks.folds
    python -m benchmarks.folds --norms layer rms --sizes large --no-quick

Measures forward and backward in training: the time of each way relative to the library as it is, as a
geometric mean over the shapes, and the largest temporary memory. Stores nothing.
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
from jaxnorm.core import _normalize, _reduce
from jaxnorm.core.lowering import _cpu_sums

ROUNDS = 7
AS_IT_IS = "as it is"


def at_most(length: int) -> dict[str, object]:
    """Limits all folds to `length` elements."""
    limit = ((math.inf, length),)
    return {"_LONGEST": limit, "_LONGEST_IN_A_ROW": limit}


# What each way replaces in the modules that compute the sums.
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
    """Patches the library for one of the ways."""
    with ExitStack() as stack:
        for name, value in WAYS[way].items():
            for module in (_cpu_sums, _reduce, _normalize):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, value))
        jax.clear_caches()
        yield
    jax.clear_caches()


def compare(norm: Callable[[], measure.Program]) -> dict[str, tuple[float, float]]:
    """Returns the time relative to the library as it is, and the temporaries, for each way."""
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
    """Options of the benchmark."""

    norms: tuple[Norm, ...] = NORMS
    """Norms to measure."""
    sizes: tuple[Size, ...] = SIZES
    """Sizes of the shapes to measure."""
    quick: bool = True
    """Measure only one shape of each size."""


def main(options: Options) -> None:
    """Prints the table in Markdown."""
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
