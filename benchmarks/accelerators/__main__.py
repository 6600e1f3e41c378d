"""Programs of jaxnorm and of Flax, compiled side by side for TPUs and GPUs that are not there.

    python -m benchmarks.accelerators tpu [--quick] [--targets v5e v6e] [--parts norms sync]
    python -m benchmarks.accelerators gpu --targets h100 b200 --write

Nothing runs on a device: the figures are the compiler's account of its own program. Each platform's
compiler needs an environment of its own: `make accelerators` makes both.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tyro

from . import targets  # before jax starts

import jax  # isort: skip
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import results
from examples.environment import versions_used

from . import hlo, models, programs, tables, timed
from .programs import AXIS, LIBRARIES, NORMS, Library, Program

Part: TypeAlias = Literal["norms", "fused", "sync", "blocks", "steps"]
PARTS: tuple[Part, ...] = ("norms", "fused", "sync", "blocks", "steps")


@dataclass(frozen=True)
class Options:
    """What is compiled."""

    platform: tyro.conf.Positional[Literal["tpu", "gpu"]]
    """Whose compiler."""
    targets: tuple[str, ...] = ()
    """Devices [unset: v5e and v6e, or h100 and b200]."""
    parts: tuple[Part, ...] = PARTS
    """Norms alone, norms of sums and gates, batch norm over devices, norms between layers, training steps."""
    norms: tuple[str, ...] = NORMS
    """Which norms, alone."""
    dtypes: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
    """Of x."""
    quick: bool = False
    """One shape of each norm, and one dtype of each block."""
    full: bool = False
    """Training steps at full depth instead, with names of their own."""
    run: bool = False
    """Time them too, on the device that is there; JAX_PLATFORMS names it."""
    write: bool = False
    """Keep the figures in benchmarks/results beside those of other programs, and the tables on the pages."""
    out: Path | None = None
    """A file for the figures."""
    dump: Path | None = None
    """A folder for the text of every compiled program."""


@dataclass(frozen=True)
class Account:
    """What a compiler says of its program."""

    cycles: int | None
    kernels: int
    moved: float
    temporaries: int
    collectives: list[hlo.Collective]

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {**vars(self), "collectives": [c._asdict() for c in self.collectives]}


def compiled(target: str, program: Program, library: Library) -> jax.stages.Compiled:
    """A program for the devices of a target, which hold the examples in equal parts."""
    f, arguments = program.of(library)
    mesh, whole, split = targets.mesh(target, program.chips), PartitionSpec(), PartitionSpec(AXIS)
    # Parameters and statistics, then what has examples; y, then the gradients of both, then statistics.
    inputs = tuple(whole if i < 2 else split for i in range(len(arguments)))
    results: Any = whole
    if program.chips > 1:
        results = (split, whole) if program.phase == "forward" else (split, (whole, split), whole)
    if program.mapped:
        f = jax.shard_map(f, mesh=mesh, in_specs=inputs, out_specs=results)

    def on_mesh(specs: Any) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def shaped(argument: Any, spec: PartitionSpec) -> Any:
        where = on_mesh(spec)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), argument
        )

    abstract = map(shaped, arguments, inputs)
    return jax.jit(f, out_shardings=on_mesh(results)).lower(*abstract).compile()


def account(program: jax.stages.Compiled) -> Account:
    """Of a compiled program."""
    kernels, collectives = hlo.run_in_order(program.as_text() or "")
    memory: Any = program.memory_analysis()
    return Account(
        sum(k.cycles for k in kernels) or None,
        len(kernels),
        sum(k.read + k.written for k in kernels),
        memory.temp_size_in_bytes,
        collectives,
    )


def chosen(options: Options, target: str) -> Iterator[Program]:
    """The programs for a target."""
    if "norms" in options.parts:
        yield from programs.norms(options.norms, options.dtypes, quick=options.quick)
        if "BatchNorm" in options.norms:
            yield from programs.activated(options.dtypes, quick=options.quick)
    if "fused" in options.parts:
        yield from programs.fused(options.dtypes, quick=options.quick)
    if "sync" in options.parts:
        yield from programs.sync(targets.counts(target, quick=options.quick))
    if "blocks" in options.parts:
        yield from models.blocks(options.dtypes, quick=options.quick)
    if "steps" in options.parts:
        for program in models.steps(options.dtypes, full=options.full):
            if (target, program.name.split(",")[0]) in models.CRASHING:
                print(f"left out: {program.name} for {target}, whose compiler crashes on Flax's")
            else:
                yield program


def measured(options: Options) -> Iterator[dict[str, Any]]:
    """A row for each program and target, with the account of each library."""
    for target in options.targets:
        for program in chosen(options, target):
            accounts: dict[Library, Account] = {}
            for library in LIBRARIES:
                executable = compiled(target, program, library)
                accounts[library] = account(executable)
                if options.dump:
                    options.dump.mkdir(parents=True, exist_ok=True)
                    name = f"{target} {program.name} {program.dtype} {program.phase} {library}.hlo"
                    (options.dump / name.replace("/", "-")).write_text(executable.as_text() or "")
            yield {
                "target": target,
                "program": program.name,
                "dtype": program.dtype,
                "phase": program.phase,
                "unit": program.unit,
                "floor": program.floor,
                **{library: found.as_dict() for library, found in accounts.items()},
                "seconds": timed.seconds(program) if options.run and program.chips == 1 else None,
            }


def main(options: Options) -> int:
    """Compiles, prints the tables, and keeps the figures if they are to be kept."""
    if problem := targets.missing(options.platform):
        print(problem, file=sys.stderr)
        return 1
    if options.run and jax.default_backend() == "cpu":
        print("--run needs a device: JAX_PLATFORMS=cuda or JAX_PLATFORMS=tpu", file=sys.stderr)
        return 1
    default = ("v5e", "v6e") if options.platform == "tpu" else ("h100", "b200")
    options = Options(**{**vars(options), "targets": options.targets or default})
    rows = []
    for row in measured(options):
        rows.append(row)
        print(" | ".join(tables.line(row)), flush=True)
    found = {"versions": versions_used(), "rows": rows}
    print("\nOurs over Flax Linen's, by the compiler's account:\n")
    print(tables.details(found), tables.summary(found), sep="\n\n")
    path = options.out
    if options.write:
        path = results.RESULTS / f"accelerators-{options.platform}-jax{jax.__version__}.json"
        found = results.with_others(found, path)
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\nThe raw figures are in {path}")
    if options.write:
        results.into_page("accelerators", tables.section, results.TABLES)
        results.into_page("accelerators", tables.summary_section, results.PERFORMANCE)
        results.into_page("accelerators", tables.moved_section, results.COSTS)
    return 0


if __name__ == "__main__":
    sys.exit(
        main(
            tyro.cli(
                Annotated[Options, tyro.conf.OmitArgPrefixes],
                prog="python -m benchmarks.accelerators",
                description=(__doc__ or "").split("\n")[0],
            )
        )
    )
