"""Measures the cost before the first step and outside of jit: tracing, lowering, compiling, eager calls.

    python -m benchmarks.tracing [--write]
    python -m benchmarks.tracing --target v5e    # compiled for a device that need not be present
    python -m benchmarks.tracing --readme        # write the stored figures to docs/performance.md

Compares training steps with our norms and with Flax Linen's. Times are CPU time (wall time for eager calls),
medians over rounds in which both libraries take turns.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import tyro

from benchmarks.accelerators import targets  # before jax starts

import flax.linen as nn  # isort: skip
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import results
from benchmarks.accelerators.models import ResNet
from benchmarks.accelerators.programs import LIBRARIES, Library
from benchmarks.tables import NOTHING, markdown
from examples.environment import machine_used, versions_used
from jaxnorm.core._jax import jaxprs_in

STACKED: dict[str, dict[str, Any]] = {
    "BatchNorm": {"use_running_average": False},
    "LayerNorm": {},
    "RMSNorm": {},
    "GroupNorm": {"num_groups": 8},
}
DEPTH = 12


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    rounds: int = 5
    """Rounds in which every program is measured."""
    target: str | None = None
    """Compile for this TPU or GPU instead of the CPU; needs the environment of benchmarks.accelerators."""
    write: bool = False
    """Store the figures in benchmarks/results."""
    readme: bool = False
    """Measure nothing; write the table of the stored figures to docs/performance.md."""


class Stack(nn.Module):
    """Dense, norm, relu, twelve times."""

    norm: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array with the shape of x."""
        for _ in range(DEPTH):
            x = nn.relu(self.norm()(nn.Dense(x.shape[-1])(x)))
        return x


def step_of(model: nn.Module, x: jax.Array) -> tuple[Callable[..., Any], tuple[Any, jax.Array]]:
    """Returns a training step (loss, gradients, SGD) of a model, and its arguments, partly abstract."""
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def step(variables: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            y, state = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (y**2).mean(), state

        (_, state), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients), state

    return step, (variables, x)


PROGRAMS = {f"{DEPTH} x dense, {name}, relu": name for name in STACKED} | {"ResNet-50": ""}
"""The norm in each program; ResNet-50 has batch norm throughout."""


def program(name: str, library: Library) -> tuple[Callable[..., Any], Any]:
    """Returns the training step of one of `PROGRAMS`, and its arguments."""
    if norm := PROGRAMS[name]:
        layer = partial(getattr(LIBRARIES[library], norm), **STACKED[norm])
        return step_of(Stack(layer), jnp.ones((32, 64)))
    resnet = ResNet(library=library, dtype=jnp.float32, depths=(3, 4, 6, 3))
    return step_of(resnet, jnp.ones((2, 64, 64, 3)))


def equations(jaxpr: Any) -> int:
    """The number of equations in a program, including nested programs."""
    inner = (j for eqn in jaxpr.eqns for j in jaxprs_in(eqn.params))
    return len(jaxpr.eqns) + sum(map(equations, inner))


def measured(step: Callable[..., Any], arguments: Any, target: str | None) -> dict[str, float]:
    """Traces, lowers and compiles one program with empty caches."""
    if target is not None:
        where = NamedSharding(targets.mesh(target), PartitionSpec())
        arguments = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), arguments
        )
    jax.clear_caches()
    times = [time.process_time()]
    traced = jax.jit(step).trace(*arguments)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    return {
        "trace and lower": times[2] - times[0],
        "compile": times[3] - times[2],
        "equations": equations(traced.jaxpr.jaxpr),
        "lines": len(lowered.as_text().splitlines()),
    }


def eager(library: Library, name: str) -> float:
    """Seconds of a call outside of jit, for an existing layer with variables."""
    layer, x = getattr(LIBRARIES[library], name)(**STACKED[name]), jnp.ones((32, 64))
    variables = layer.init(jax.random.key(0), x)
    call = partial(layer.apply, variables, x, mutable=["batch_stats"])
    samples = []
    for _ in range(30):
        began = time.perf_counter()
        jax.block_until_ready(call())
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def importing(rounds: int) -> float:
    """Seconds of CPU time for `import jaxnorm` once jax is imported, with byte code as pip installs it."""
    code = (
        "import time, jax; began = time.process_time(); import jaxnorm; "
        "print(time.process_time() - began)"
    )
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        command = [sys.executable, "-c", code]
        _, *times = (  # the first run writes the byte code
            float(subprocess.check_output(command, env=env)) for _ in range(rounds + 1)
        )
    return statistics.median(times)


def rows(rounds: int, target: str | None) -> Iterator[dict[str, Any]]:
    """Yields the figures of each program with both libraries, as medians over `rounds` rounds."""
    for name in PROGRAMS:
        ours, flax = program(name, "jaxnorm"), program(name, "Flax")
        turns = [(measured(*ours, target), measured(*flax, target)) for _ in range(rounds)]
        yield {
            "program": name,
            "allocator": "keep",
            **{
                library: {
                    key: statistics.median(turn[i][key] for turn in turns) for key in turns[0][i]
                }
                for i, library in enumerate(("jaxnorm", "Flax"))
            },
        }
    for name in STACKED if target is None else ():
        turns = [(eager("jaxnorm", name), eager("Flax", name)) for _ in range(rounds)]
        medians = (statistics.median(times) for times in zip(*turns, strict=True))
        yield {
            "program": f"{name}, an eager call",
            "allocator": "keep",
            **{k: {"eager": v} for k, v in zip(("jaxnorm", "Flax"), medians, strict=True)},
        }


def table(found: dict[str, Any]) -> str:
    """Returns the figures of one machine and set of versions: ours over Flax's, and Flax's."""
    kinds = ("trace and lower", "compile", "eager", "equations", "lines")

    def cell(row: dict[str, Any], kind: str) -> str:
        ours, flax = (row[library].get(kind, math.nan) for library in ("jaxnorm", "Flax"))
        if math.isnan(ours):
            return ""
        unit = f"{flax:,.0f}" if kind in ("equations", "lines") else f"{1000 * flax:,.1f} ms"
        return f"{ours / flax:.2f} ({unit})"

    lines = [[row["program"], *(cell(row, kind) for kind in kinds)] for row in found["rows"]]
    header = ["ours / Flax's (Flax's)", *kinds[:3], "equations of the jaxpr", "lines of StableHLO"]
    heading = f"{found['machine']}; {found['versions']}"
    if "import" in found:
        heading += f"; `import jaxnorm` after `import jax`: {1000 * found['import']:.0f} ms"
    return f"{heading}\n\n{markdown(header, lines)}"


def section(stored: list[dict[str, Any]]) -> str:
    """Returns the section of the page with all stored figures."""
    return "\n\n".join(map(table, stored)) or NOTHING


def main(options: Options) -> None:
    """Measures, prints the table, and stores the figures if requested."""
    if options.readme:
        results.into_page("tracing", section, results.PERFORMANCE)
        return
    if options.target and (problem := targets.missing(targets.platform(options.target))):
        sys.exit(problem)
    compiler = "" if options.target is None else f"compiled for {options.target} on "
    found: dict[str, Any] = {
        "machine": compiler + machine_used(),
        "versions": versions_used(),
        "rows": [*rows(options.rounds, options.target)],
    }
    if options.target is None:
        found["import"] = importing(options.rounds)
    print(table(found))
    if options.write:
        results.keep("-".join(filter(None, ("tracing", options.target))), found)


if __name__ == "__main__":
    main(
        tyro.cli(
            Options,
            prog="python -m benchmarks.tracing",
            description=(__doc__ or "").split("\n")[0],
            config=(tyro.conf.OmitArgPrefixes,),
        )
    )
