"""Lists what XLA compiles a norm to: its programs in order, what runs them, and what they read and write.

    python -m benchmarks.programs --norm layer --shape 6144 640

Stores nothing. An operand counts in full, even if only a slice of it is read.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import tyro

from benchmarks.cases import Case, Dtype, Norm, Phase, draw
from benchmarks.contestants import FLAX, IN_JAX, OURS
from benchmarks.measure import compiled
from benchmarks.tables import markdown

HIDDEN = 0.05  # fraction of x: programs that move less are counted but not listed


class Part(NamedTuple):
    """One program of a compiled function."""

    by: str
    reads: int  # bytes
    writes: int


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    norm: Norm = "layer"
    """Norm to compile."""
    shape: tuple[int, ...] = (6144, 640)
    """Shape of x, channels last."""
    dtype: Dtype = "float32"
    """dtype of x and y."""
    phase: Phase = "forward"
    """Evaluation with running statistics (eval); training, forward or forward and backward (both)."""


def parts(program: jax.stages.Compiled) -> list[Part]:
    """Returns the programs that run one after the other."""
    text = program.as_text() or ""
    entry = text[text.index("\nENTRY") :]
    lines = re.findall(r"  (?:ROOT )?(%[\w.-]+) = (.+?) ([\w-]+)\(([^\n]*)", entry)
    sizes = {name: _bytes(shapes) for name, shapes, _, _ in lines}
    free = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
    found = []
    for name, _, operation, rest in lines:
        if operation not in free:
            operands = set(re.findall(r"%[\w.-]+", rest[: rest.index(")")]))
            reads = sum(sizes[operand] for operand in operands)
            found.append(Part(_by(operation, rest), reads, sizes[name]))
    return found


def _bytes(shapes: str) -> int:
    """The bytes of an array, or of the arrays of a tuple."""
    return sum(
        math.prod(map(int, filter(None, sizes.split(",")))) * _itemsize(dtype)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def _itemsize(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1


def _by(operation: str, rest: str) -> str:
    if "__ynn_fusion" in rest:
        return "library"
    threads = re.search(r"outer_dimension_partitions\D*([\d\",]+)\]", rest)
    if threads is None:
        return "loop" if operation == "fusion" else operation
    return f"loop, {math.prod(map(int, re.findall(r'[0-9]+', threads[1])))} threads"


def table(case: Case, dtype: Dtype, phase: Phase) -> str:
    """A table of our programs and Flax's; large ones are listed one by one."""
    data = draw(case, dtype)
    lines = []
    for library in (OURS, FLAX):
        forward = IN_JAX[library](case, phase != "eval")
        assert forward is not None
        found = parts(compiled(forward, phase, data))
        size = data.x.nbytes
        large = [part for part in found if part.reads + part.writes > HIDDEN * size]
        for part in large:
            moved = (f"{n / size:.2f}" for n in (part.reads, part.writes))
            lines.append([library, part.by, *moved])
        moved = (
            f"{sum(n) / size:.2f}" for n in zip(*((p.reads, p.writes) for p in found), strict=True)
        )
        lines.append([library, f"all, with {len(found) - len(large)} small ones", *moved])
    return markdown(["", "run by", "reads, N", "writes, N"], lines)


def main(options: Options) -> None:
    """Prints the table in Markdown."""
    case = Case(options.norm, options.shape, "large")
    print(
        f"{options.norm} norm of {options.shape}, {jnp.dtype(options.dtype).name}, {options.phase}\n"
    )
    print(table(case, options.dtype, options.phase))


if __name__ == "__main__":
    main(
        tyro.cli(
            Options,
            prog="python -m benchmarks.programs",
            description=(__doc__ or "").split("\n")[0],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    )
