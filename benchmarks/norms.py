"""Every norm against its peers, in one process: time, memory, bytes, and the fraction of copy bandwidth.

    python -m benchmarks.norms --quick --norms batch          # prints; progress goes to stderr
    python -m benchmarks.norms --write                        # keeps figures and picture, too
    python -m benchmarks.norms --readme                       # the stored figures into README.md

A program computes y (phases eval and forward), or y, dx, dscale and dbias from x and dy (both). What
disagrees with float64 is refused. Ratios are medians over rounds in which all contestants take their turn.
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
    """What is measured."""

    norms: tuple[Norm, ...] = NORMS
    """Which norms."""
    peers: tuple[Peer, ...] = get_args(Peer)
    """Which other libraries; those not installed here, or not for this device, are left out."""
    phases: tuple[Phase, ...] = PHASES
    """With running statistics; forward in training; forward and backward."""
    dtypes: tuple[Dtype, ...] = DTYPES
    """Of x and y."""
    sizes: tuple[Size, ...] = SIZES
    """Which of the shapes."""
    quick: bool = False
    """One shape of each size."""
    rounds: int = 15
    """Turns of each contestant."""
    allocator: Allocator = "keep"
    """Whether freed memory is kept, or given back as glibc does by default."""
    write: bool = False
    """Keep the figures of this allocator in benchmarks/results, and draw the picture."""
    readme: bool = False
    """Measure nothing; write the tables of the stored figures into benchmarks/README.md."""


def program_of(library: str, case: Case, phase: Phase, data: Data) -> measure.Program | None:
    """The compiled computation; None where the library lacks the norm."""
    if library == "PyTorch":
        from benchmarks.torch_peer import torch_program

        return torch_program(case, phase, data)
    forward = IN_JAX[library](case, phase != "eval")
    return forward and measure.in_jax(forward, phase, data)


def compare(
    case: Case, phase: Phase, dtype: Dtype, libraries: tuple[str, ...], rounds: int
) -> dict[str, Any]:
    """All libraries on one case.

    Raises:
        RuntimeError: a result is off, see `truth.check`.
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
    """The rows of all that is asked for, and what they depend on."""
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
    """Measures, prints the tables, and keeps the figures where that is asked for."""
    if options.readme:
        results.into_readme("norms", tables.norms_section)
        results.into_readme("norms", tables.headline_section, results.PROJECT_README)
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
