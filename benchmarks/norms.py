"""Compares every norm with its peers in one process: time, memory, bytes and fraction of copy bandwidth.

    python -m benchmarks.norms --quick --norms batch          # prints; progress goes to stderr
    python -m benchmarks.norms --write                        # also stores the figures and the plot
    python -m benchmarks.norms --readme                       # writes the stored figures to their pages

A program computes y (phases eval and forward), or y, dx, dscale and dbias from x and dy (phase both). Results
that disagree with float64 are rejected. Ratios are medians over rounds in which all contestants take turns.
"""

import sys
from dataclasses import dataclass
from typing import Any, get_args

import jax
import numpy as np
import tyro

from benchmarks import measure, picture, results, tables
from benchmarks.cases import (
    DTYPES,
    FLOORS,
    NORMS,
    PHASES,
    SIZES,
    Case,
    Data,
    Dtype,
    Norm,
    Phase,
    Size,
    cases,
    draw,
)
from benchmarks.contestants import (
    DIFFERENCES,
    DISTRIBUTIONS,
    FLAX,
    IN_JAX,
    OURS,
    Peer,
    installed,
)
from benchmarks.environment import Allocator, run_under
from benchmarks.truth import check, truth
from examples.environment import machine_used, versions_used

COPY = "copy"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    norms: tuple[Norm, ...] = NORMS
    """Norms to measure."""
    peers: tuple[Peer, ...] = get_args(Peer)
    """Libraries to compare with; those not installed, or not built for this device, are left out."""
    phases: tuple[Phase, ...] = PHASES
    """Evaluation with running statistics (eval); training, forward or forward and backward (both)."""
    dtypes: tuple[Dtype, ...] = DTYPES
    """dtypes of x and y."""
    sizes: tuple[Size, ...] = SIZES
    """Sizes of the shapes to measure."""
    quick: bool = False
    """Measure only one shape of each size."""
    rounds: int = 15
    """Rounds in which every contestant is timed."""
    allocator: Allocator = "keep"
    """Whether freed memory is kept, or returned to the system as glibc does by default."""
    write: bool = False
    """Store the figures of this allocator in benchmarks/results, and draw the plot."""
    readme: bool = False
    """Measure nothing; write the tables of the stored figures to their pages."""


def program_of(library: str, case: Case, phase: Phase, data: Data) -> measure.Program | None:
    """Returns the compiled computation, or None if the library lacks the norm."""
    if library == "PyTorch":
        from benchmarks.torch_peer import torch_program

        return torch_program(case, phase, data)
    forward = IN_JAX[library](case, phase != "eval")
    return forward and measure.in_jax(forward, phase, data)


def compare(
    case: Case, phase: Phase, dtype: Dtype, libraries: tuple[str, ...], rounds: int
) -> dict[str, Any]:
    """Compares all libraries on one case.

    Raises:
        RuntimeError: If a result is wrong; see `truth.check`.
    """
    data = draw(case, dtype)
    different = {name: DIFFERENCES.get((name, case.norm, phase, dtype)) for name in libraries}
    found = {name: program_of(name, case, phase, data) for name in libraries if not different[name]}
    programs = {name: program for name, program in found.items() if program is not None}
    right = truth(case, phase, data)
    for name, program in programs.items():
        check(name, case, phase, dtype, program.results(), right)
    times = measure.in_turns({**programs, COPY: measure.copy_of(data.x)}, rounds)
    floor = FLOORS[case.norm][phase]
    contestants = {}
    for name, program in programs.items():
        took = times[name]
        contestants[name] = {
            "milliseconds": 1e3 * float(np.median(took)),
            "of_copy": float(np.median(floor / 2 * times[COPY] / took)),
            "ours_over": measure.quartiles(times[OURS] / took),
            **({"over_flax": measure.quartiles(took / times[FLAX])} if FLAX in times else {}),
            **program.counted,
        }
    return {
        **case._asdict(),
        "phase": phase,
        "dtype": dtype,
        "floor": floor,
        "copy_milliseconds": 1e3 * float(np.median(times[COPY])),
        "contestants": contestants,
        "left_out": {name: why for name, why in different.items() if why},
    }


def measured(options: Options) -> dict[str, Any]:
    """Returns the rows of all requested cases, and the machine and versions."""
    libraries = installed((OURS, *options.peers))
    rows = []
    for case in cases(options.norms, options.sizes, options.quick):
        for dtype in options.dtypes:
            for phase in FLOORS[case.norm]:
                if phase not in options.phases:
                    continue
                row = compare(case, phase, dtype, libraries, options.rounds)
                rows.append({"allocator": options.allocator, "rounds": options.rounds, **row})
                print(tables.progress(row), file=sys.stderr, flush=True)
    others = [DISTRIBUTIONS[name] for name in libraries if name in DISTRIBUTIONS]
    return {
        "machine": machine_used(),
        "versions": versions_used(*others),
        "not_installed": [name for name in options.peers if name not in libraries],
        "rows": rows,
    }


def main(options: Options) -> None:
    """Measures, prints the tables, and stores the figures if requested."""
    if options.readme:
        results.into_page("norms", tables.norms_section, results.TABLES)
        results.into_page("norms", tables.headline_section, results.PERFORMANCE)
        return
    found = measured(options)
    print(tables.norms(found))
    if options.write:
        found = results.keep("norms", found)
        picture.draw(found, results.PICTURES / f"norms-{jax.default_backend()}.png")


if __name__ == "__main__":
    chosen = tyro.cli(
        Options,
        prog="python -m benchmarks.norms",
        description=(__doc__ or "").split("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run_under(chosen.allocator)
    main(chosen)
