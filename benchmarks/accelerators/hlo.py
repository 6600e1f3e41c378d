"""What an optimized program does, read from its text: kernels, bytes, estimated cycles, collectives."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[fsuc]\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(
    r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+?\](?:\{[^}]*\})?) "
    r"(?P<op>[a-z][\w\-]*)\((?P<rest>.*)$"
)
# What takes no time of its own.
FREE = {
    "after-all",
    "all-gather-done",
    "all-reduce-done",
    "async-done",
    "async-start",
    "async-update",
    "bitcast",
    "constant",
    "copy-done",
    "copy-start",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "slice-done",
    "slice-start",
    "tuple",
}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    argument: str  # what stands in the brackets: the number of a parameter
    attributes: str
    is_root: bool

    def called(self, attribute: str) -> str | None:
        """The name of the computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


Computations = dict[str, list[Instruction]]


class Kernel(NamedTuple):
    """What a device runs as one."""

    op: str
    name: str
    read: float  # bytes
    written: float
    cycles: int  # estimated by XLA:TPU; 0 elsewhere


class Collective(NamedTuple):
    """A collective, and the bytes that each device puts in or takes out."""

    op: str
    bytes: int


def computations(text: str) -> Computations:
    """Those of a module, by name; that which is run is "ENTRY"."""
    found: Computations = {}
    lines: list[Instruction] | None = None
    for line in text.splitlines():
        if head := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            lines = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif line.startswith("}"):
            lines = None
        elif lines is not None and (instruction := _instruction(line)):
            lines.append(instruction)
    return found


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line))
    if match is None:
        return None
    end = _closing(match["rest"])
    inside, attributes = match["rest"][:end], match["rest"][end + 1 :]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    is_root = match["root"] is not None
    return Instruction(
        match["name"], match["type"], match["op"], operands, inside, attributes, is_root
    )


def _closing(text: str) -> int:
    """Where the bracket closes that is open at the start."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return i
    return len(text)


def size(type_: str) -> int:
    """Bytes of an array, or of the arrays of a tuple."""
    return sum(math.prod(dims) * _itemsize(dtype) for dtype, dims in _arrays(type_))


def _elements(type_: str) -> int:
    return sum(math.prod(dims) for _, dims in _arrays(type_))


def _arrays(type_: str) -> Iterator[tuple[str, list[int]]]:
    for dtype, dims in _ARRAY.findall(type_):
        yield dtype, [int(n) for n in dims.split(",") if n]


def _itemsize(dtype: str) -> int:
    bits = _BITS.search(dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def run_in_order(text: str) -> tuple[list[Kernel], list[Collective]]:
    """The kernels and collectives of a module; the body of a loop as often as it runs.

    Of a conditional, the branch counts that moves least: it is the one that is meant to run.
    """
    all_of = computations(text)
    return _of_computation("ENTRY", all_of)


def _of_computation(
    name: str, all_of: Computations, times: int = 1
) -> tuple[list[Kernel], list[Collective]]:
    kernels, collectives = list[Kernel](), list[Collective]()
    types = {i.name: i.type for i in all_of.get(name, ())}
    for i in all_of.get(name, ()):
        if i.op in FREE:
            continue
        if i.op.startswith(COLLECTIVES):
            collectives += [Collective(i.op.removesuffix("-start"), size(i.type))] * times
            continue
        branches = [
            _of_computation(branch, all_of, times * _trips(i)) for branch in _branches(i, all_of)
        ]
        if branches:
            chosen = min(branches, key=lambda b: sum(k.read + k.written for k in b[0]))
            kernels += chosen[0]
            collectives += chosen[1]
            continue
        kernels += [_kernel(i, types, all_of)] * times
    return kernels, collectives


def _branches(i: Instruction, all_of: Computations) -> list[str]:
    if i.op == "while":
        names = [i.called("body")]
    elif i.op == "call":
        names = [i.called("to_apply")]
    elif i.op == "conditional":
        several = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
        names = re.findall(r"[\w.\-]+", several[1].replace("%", "")) if several else []
        names = names or [i.called("true_computation"), i.called("false_computation")]
    else:
        names = []
    return [name for name in names if name in all_of]


def _trips(i: Instruction) -> int:
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.attributes)
    return int(found[1]) if found else 1


def _kernel(i: Instruction, types: dict[str, str], all_of: Computations) -> Kernel:
    fused = i.called("calls") if i.op == "fusion" else None
    if fused in all_of:
        read = sum(_read_of_parameters(all_of[fused]))
    else:
        read = sum(size(types[name]) for name in i.operands if name in types)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
    return Kernel(i.op, i.name, read, size(i.type), int(cycles[1]) if cycles else 0)


def _read_of_parameters(fused: list[Instruction]) -> Iterator[float]:
    """Bytes of each parameter that a fused computation reads: of what is only sliced, the slice."""
    by_name = {i.name: i for i in fused}
    share: dict[str, float] = defaultdict(float)
    for i in reversed(fused):
        if i.is_root:
            share[i.name] = 1.0
        for name in i.operands if share[i.name] else ():
            if name not in by_name:
                continue
            whole = max(_elements(by_name[name].type), 1)
            if i.op in ("slice", "dynamic-slice", "gather"):
                needed = min(1.0, share[i.name] * _elements(i.type) / whole)
            elif i.op in ("broadcast", "reduce", "dot", "reduce-window", "convolution"):
                needed = 1.0
            else:
                needed = share[i.name]
            share[name] = max(share[name], needed)
    for i in fused:
        if i.op == "parameter":
            yield share[i.name] * size(i.type)
