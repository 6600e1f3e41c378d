"""Compares whole training steps with our layers and with Flax's in the same model: time and memory.

    python -m benchmarks.steps [--write]
    python -m benchmarks.steps --readme        # write the stored figures to docs/performance.md

A step is one program: loss, gradients and SGD, on random data, with donated state. The first losses must
agree. Memory is as reported by the compiler.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from benchmarks import measure, results
from benchmarks.cases import DTYPES, Dtype
from benchmarks.environment import Allocator, run_under
from benchmarks.step_models import (
    WIDTH,
    LinenBlock,
    LinenStack,
    NNXBlock,
    NNXResNet20,
    NNXStack,
)
from benchmarks.tables import ALLOCATORS, NOTHING, markdown
from examples.environment import machine_used, versions_used
from examples.models import ResNet20
from jaxnorm import linen as jnl, nnx as jnx

Model: TypeAlias = Literal[
    "ResNet-20", "block, LayerNorm", "block, RMSNorm", "16 x dense, BatchNorm"
]
MODELS: tuple[Model, ...] = get_args(Model)
MODULES = ("linen", "nnx")
LEARNING_RATE, FIRST = 1e-3, 3
# Relative tolerances of the first losses.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}
IMAGES, TOKENS, ROWS = (128, 32, 32, 3), (16, 197, WIDTH), (8192, 128)


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    models: tuple[Model, ...] = MODELS
    """Models to measure."""
    dtypes: tuple[Dtype, ...] = DTYPES
    """dtypes of the models; bfloat16 only for transformer blocks (on a CPU, XLA convolves in float32)."""
    rounds: int = 9
    """Rounds in which every contestant is timed."""
    allocator: Allocator = "keep"
    """Whether freed memory is kept, or returned to the system as glibc does by default."""
    write: bool = False
    """Store the figures of this allocator in benchmarks/results."""
    readme: bool = False
    """Measure nothing; write the table of the stored figures to docs/performance.md."""


class Task(NamedTuple):
    """A model as a function of its parameters and running statistics, and its data."""

    apply: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    state: tuple[Any, Any]
    x: jax.Array
    target: jax.Array


def in_linen(model: Model, layers: Any, dtype: Any, x: jax.Array) -> tuple[Any, Any]:
    """Returns `Task.apply` and `Task.state` with the norms of `layers`: `jaxnorm.linen` or `flax.linen`."""
    match model:
        case "ResNet-20":
            module: Any = ResNet20(norm=layers.BatchNorm, dtype=dtype)
            call: dict[str, Any] = {"train": True}
        case "16 x dense, BatchNorm":
            module, call = LinenStack(layers.BatchNorm, dtype), {}
        case _:
            module, call = LinenBlock(getattr(layers, model.split()[1]), dtype), {}
    variables = module.init(jax.random.key(0), x, **call)

    def apply(params: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, updated = module.apply(
            {"params": params, "batch_stats": stats}, x, **call, mutable=["batch_stats"]
        )
        return y, updated.get("batch_stats", {})

    return apply, (variables["params"], variables.get("batch_stats", {}))


def in_nnx(model: Model, layers: Any, dtype: Any, x: jax.Array) -> tuple[Any, Any]:
    """Does the same with `jaxnorm.nnx` or `flax.nnx`."""
    rngs = nnx.Rngs(0)
    match model:
        case "ResNet-20":
            module: Any = NNXResNet20(layers.BatchNorm, 10, rngs)
        case "16 x dense, BatchNorm":
            module = NNXStack(layers.BatchNorm, x.shape[-1], dtype, rngs)
        case _:
            module = NNXBlock(getattr(layers, model.split()[1]), dtype, rngs)
    graph, params, others = nnx.split(module, nnx.Param, ...)

    def apply(params: Any, others: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        module = nnx.merge(graph, params, others, copy=True)  # a copy for this trace to update
        y = module(x)
        return y, nnx.split(module, nnx.Param, ...)[2]

    return apply, (params, others)


def task(model: Model, modules: str, whose: str, dtype: Dtype) -> Task:
    """Returns a contestant: `modules` is linen or nnx; `whose` norms are jaxnorm's or flax's."""
    shape = {"ResNet-20": IMAGES, "16 x dense, BatchNorm": ROWS}.get(model, TOKENS)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape, np.float32))
    target_shape = (shape[0], 10) if model == "ResNet-20" else shape
    target = jnp.asarray(rng.standard_normal(target_shape, np.float32))
    build, ours, theirs = (in_linen, jnl, nn) if modules == "linen" else (in_nnx, jnx, nnx)
    layers = ours if whose == "jaxnorm" else theirs
    return Task(*build(model, layers, jnp.dtype(dtype), x), x, target)


def train_step(apply: Any, state: Any, x: jax.Array, target: jax.Array) -> tuple[Any, jax.Array]:
    """Takes an SGD step on the mean squared error; returns the new state and the loss before the step."""
    params, stats = state

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        y, updated = apply(params, stats, x)
        return jnp.mean((y.astype(jnp.float32) - target) ** 2), updated

    (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    params = jax.tree.map(
        lambda p, g: p - jnp.asarray(LEARNING_RATE, p.dtype) * g, params, gradients
    )
    return (params, stats), loss


def training(start: Task) -> tuple[measure.Program, list[float]]:
    """Returns the step as a program that keeps training, and its first losses."""
    apply, state, x, target = start
    step = jax.jit(partial(train_step, apply), donate_argnums=0).lower(state, x, target).compile()
    losses = []
    for _ in range(FIRST):
        state, loss = step(state, x, target)
        losses.append(float(loss))

    def run(times: int) -> Any:
        nonlocal state
        loss = None
        for _ in range(times):
            state, loss = step(state, x, target)
        return jax.block_until_ready((state, loss))

    return measure.Program(run, counted=memory(step)), losses


def memory(compiled: Any) -> dict[str, float]:
    """Bytes of temporaries, and the total with arguments and with results that do not alias them.

    JAX's `peak_memory_in_bytes` does not help: on a CPU it leaves out the temporaries.
    """
    found = compiled.memory_analysis()
    if found is None:
        return {}
    others = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return {"temporaries": found.temp_size_in_bytes, "all": found.temp_size_in_bytes + others}


def agree(where: str, dtype: Dtype, ours: list[float], theirs: list[float]) -> None:
    """Checks that the losses agree, as those of the same model must.

    Raises:
        RuntimeError: If they differ.
    """
    if not np.allclose(ours, theirs, rtol=TOLERANCES[dtype], atol=0):
        raise RuntimeError(f"{where}: the first losses are {ours} with ours, {theirs} with Flax's")


def compare(model: Model, dtype: Dtype, rounds: int) -> list[dict[str, Any]]:
    """Compares our norms with Flax's; returns a row for Linen and a row for NNX."""
    names = [(modules, whose) for modules in MODULES for whose in ("jaxnorm", "flax")]
    trained = {f"{m} {w}": training(task(model, m, w, dtype)) for m, w in names}
    for modules in MODULES:
        losses = [trained[f"{modules} {whose}"][1] for whose in ("jaxnorm", "flax")]
        agree(f"{model}, {dtype}, {modules}", dtype, *losses)
    times = measure.in_turns({name: program for name, (program, _) in trained.items()}, rounds)
    rows = []
    for modules in MODULES:
        both = [f"{modules} {whose}" for whose in ("jaxnorm", "flax")]
        ours, theirs = (times[name] for name in both)
        counted = [trained[name][0].counted for name in both]
        rows.append(
            {
                "model": model,
                "dtype": dtype,
                "modules": modules,
                "ratio": measure.quartiles(ours / theirs),
                "milliseconds": [1e3 * float(np.median(t)) for t in (ours, theirs)],
                **{what: [c[what] for c in counted] for what in counted[0]},
            }
        )
    return rows


def measured(options: Options) -> dict[str, Any]:
    """Returns the rows of all requested models, and the machine and versions."""
    rows = []
    for model in options.models:
        for dtype in options.dtypes:
            if dtype == "float32" or model.startswith("block"):
                rows += compare(model, dtype, options.rounds)
                print(f"{model} {dtype}: done", file=sys.stderr, flush=True)
    return {
        "machine": machine_used(),
        "versions": versions_used(),
        "rounds": options.rounds,
        "rows": [{"allocator": options.allocator, **row} for row in rows],
    }


def table(found: dict[str, Any]) -> str:
    """Returns the figures of one machine and set of versions in Markdown."""

    def megabytes(row: dict[str, Any], what: str) -> str:
        return " / ".join(f"{n / 1e6:,.0f}" for n in row[what]) if what in row else "–"

    parts = [f"{found['machine']}; {found['versions']}; {found['rounds']} rounds"]
    for allocator, title in ALLOCATORS.items():
        rows = [row for row in found["rows"] if row["allocator"] == allocator]
        if not rows:
            continue
        lines = []
        for row in rows:
            low, middle, high = row["ratio"]
            lines.append(
                [
                    row["model"],
                    row["dtype"],
                    {"linen": "Linen", "nnx": "NNX"}[row["modules"]],
                    " / ".join(f"{t:,.1f}" for t in row["milliseconds"]),
                    f"{middle:.2f} ({low:.2f} to {high:.2f})",
                    megabytes(row, "temporaries"),
                    megabytes(row, "all"),
                ]
            )
        header = ["model", "dtype", "", "ms, ours / Flax", "time / Flax's (quartiles)"]
        header += ["temporaries, MB", "with arguments and results, MB"]
        parts += [f"{title}:", markdown(header, lines)]
    return "\n\n".join(parts)


def section(stored: list[dict[str, Any]]) -> str:
    """Returns the section of the page with all stored figures."""
    return "\n\n".join(map(table, stored)) or NOTHING


def main(options: Options) -> None:
    """Measures, prints the table, and stores the figures if requested."""
    if options.readme:
        results.into_page("steps", section, results.PERFORMANCE)
        return
    found = measured(options)
    print(table(found))
    if options.write:
        results.keep("steps", found)


if __name__ == "__main__":
    chosen = tyro.cli(
        Options,
        prog="python -m benchmarks.steps",
        description=(__doc__ or "").split("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run_under(chosen.allocator)
    main(chosen)
