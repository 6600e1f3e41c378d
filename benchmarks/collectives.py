"""Counts what a synced batch norm sends between devices in compiled programs, and models the time it takes.

python -m benchmarks.collectives [--channels 256]

The devices are virtual and nothing runs on them: the programs are only compiled, for 2 to 512 devices.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
DEVICES = (2, 8, 64, 512)
WAYS = (
    "jaxnorm, shard_map",
    "jaxnorm, jit over a mesh",
    "Flax, shard_map",
    "Flax, jit over a mesh",
)
BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


class Collective(NamedTuple):
    """A collective in a compiled program: elements and bytes that each device sends or receives."""

    op: str
    elements: int
    bytes: int


def collectives(compiled: str) -> list[Collective]:
    """Returns the collectives of an HLO text; one with several arrays is listed once, with their sum."""
    found = []
    for types, op in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", compiled):
        arrays = [
            (math.prod(int(d) for d in dims.split(",") if d), BYTES[dtype])
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", types)
        ]
        found.append(Collective(op, sum(n for n, _ in arrays), sum(n * size for n, size in arrays)))
    return found


# --- a simple model of time ----------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """An interconnect between devices: its published bandwidth, and an assumed time per step."""

    name: str
    bytes_per_second: float  # in one direction
    seconds_per_step: float  # from a send to its arrival on the next device, software included


# H100 data sheet: NVLink 900 GB/s, both directions together. NDR InfiniBand: 400 Gbit/s. 100 Gbit Ethernet.
# The times per step are typical values that are assumed, not published; they dominate the result here.
LINKS = (
    Link("NVLink 4", 450e9, 3e-6),
    Link("InfiniBand NDR", 50e9, 6e-6),
    Link("100 Gbit Ethernet", 12.5e9, 20e-6),
)


def seconds(link: Link, devices: int, size: int) -> float:
    """The time of one all-reduce of `size` bytes, by the faster of a tree and a ring."""
    steps = math.ceil(math.log2(devices))
    tree = 2 * steps * link.seconds_per_step + 2 * size / link.bytes_per_second
    ring = 2 * (devices - 1) * (link.seconds_per_step + size / devices / link.bytes_per_second)
    return min(tree, ring)


# --- the compiled programs -----------------------------------------------------------------------


def measured(way: str, channels: int) -> dict[str, list[Collective]]:
    """Returns the collectives of forward, and of forward and backward together, on all devices."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    from jaxnorm import linen as jnl

    mesh = jax.make_mesh((jax.device_count(),), ("batch",), (AxisType.Auto,))
    mapped = way.endswith("shard_map")
    norm = jnl.BatchNorm if way.startswith("jaxnorm") else nn.BatchNorm
    layer = norm(use_running_average=False, axis_name="batch" if mapped else None)
    x = jnp.zeros((4, 4, 4, channels))
    variables = norm(use_running_average=False).init(jax.random.key(0), x)

    def forward(variables: Any, x: Any) -> Any:
        y, updated = layer.apply(variables, x, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    if mapped:
        specs: dict[str, Any] = {"in_specs": (P(), P("batch")), "out_specs": (P("batch"), P())}
        forward = jax.shard_map(forward, mesh=mesh, **specs)

    def both(variables: Any, x: Any, dy: Any) -> Any:
        y, pull, stats = jax.vjp(forward, variables, x, has_aux=True)
        return y, stats, pull(dy)

    def shaped(tree: Any, *names: str, repeats: int = 1) -> Any:
        sharding = NamedSharding(mesh, P(*names))
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(
                (repeats * a.shape[0], *a.shape[1:]), a.dtype, sharding=sharding
            ),
            tree,
        )

    whole, parts = shaped(variables), shaped(x, "batch", repeats=mesh.size)
    programs = {"forward": (forward, (whole, parts)), "both": (both, (whole, parts, parts))}
    return {
        name: collectives(jax.jit(f).lower(*arguments).compile().as_text() or "")
        for name, (f, arguments) in programs.items()
    }


def measure_all(channels: int) -> dict[str, Any]:
    """Runs `measured` for every way, with a separate process for each number of devices."""
    from examples.environment import versions_used

    rows = []
    for devices in DEVICES:
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.collectives", "--channels", str(channels), "--here"],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            },
            check=True,
            capture_output=True,
            text=True,
        )
        rows += [{"devices": devices, **row} for row in json.loads(ran.stdout.splitlines()[-1])]
    return {"versions": versions_used(), "channels": channels, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """Returns both tables."""
    lines = [
        f"{found['versions']}; {found['channels']} channels",
        "",
        "| | devices | forward | bytes | forward and backward | bytes |",
        "|---|---|---|---|---|---|",
    ]
    # Numbers of devices with the same result share a line.
    lines_of: dict[tuple[str, str], list[int]] = {}
    for row in sorted(found["rows"], key=lambda row: WAYS.index(row["way"])):
        cells = [
            f"{len(row[part])} {', '.join(sorted({c['op'] for c in row[part]}))} | "
            f"{sum(c['bytes'] for c in row[part]):,}"
            for part in ("forward", "both")
        ]
        lines_of.setdefault((row["way"], " | ".join(cells)), []).append(row["devices"])
    lines += [
        f"| {way} | {', '.join(map(str, devices))} | {cells} |"
        for (way, cells), devices in lines_of.items()
    ]
    lines += [
        "",
        "| microseconds a layer, forward and backward | " + " | ".join(map(str, DEVICES)) + " |",
        "|---" * (len(DEVICES) + 1) + "|",
    ]
    for link in LINKS:
        cells = []
        for devices in DEVICES:
            (row,) = (r for r in found["rows"] if r["devices"] == devices and r["way"] == WAYS[0])
            cells.append(
                f"{1e6 * sum(seconds(link, devices, c['bytes']) for c in row['both']):.0f}"
            )
        lines.append(f"| {link.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the tables and stores the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument(
        "--here", action="store_true", help="measure on the devices of this process; print JSON"
    )
    options = parser.parse_args()
    if options.here:
        of_way = partial(measured, channels=options.channels)
        rows = [
            {"way": way, **{k: [c._asdict() for c in v] for k, v in of_way(way).items()}}
            for way in WAYS
        ]
        print(json.dumps(rows))
        return
    found = measure_all(options.channels)
    found["links"] = [asdict(link) for link in LINKS]
    path = RESULTS / f"collectives-jax{found['versions'].split()[1].rstrip(',')}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))
    print(f"\nThe raw figures are in {path}")


if __name__ == "__main__":
    main()
