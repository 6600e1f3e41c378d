"""Compares evaluation before and after `tools.fold`: time, memory and contents of the compiled programs.

    python -m benchmarks.folding [--write]
    python -m benchmarks.folding --readme       # write the stored figures to tables.md, and draw the plot

Runs the networks of the CIFAR-10 example with random weights and statistics: with Flax's batch norms, with
ours, and folded. Each runs as one compiled program, as in deployment, and without jit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import measure, results
from benchmarks.environment import run_under
from benchmarks.tables import NOTHING, markdown
from examples import report
from examples.environment import machine_used, versions_used
from examples.models import CNN, ResNet20
from jaxnorm import linen as jnl, tools

NETWORKS: dict[str, Any] = {"CNN": CNN, "ResNet20": ResNet20}
BATCHES = (1, 32, 256)
BEFORE = ("Flax", "jaxnorm")
PICTURE = results.PICTURES / "folding.png"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    rounds: int = 11
    """Rounds in which every program is timed."""
    write: bool = False
    """Store the figures in benchmarks/results."""
    readme: bool = False
    """Measure nothing; write the table of the stored figures to benchmarks/tables.md, and draw the plot."""


def flax_norm() -> Callable[..., jax.Array]:
    """Flax's batch norm, with a `mask` argument that it ignores."""
    norm = nn.BatchNorm()
    return lambda x, use_running_average, mask: norm(x, use_running_average)


def trained(variables: Any) -> Any:
    """Randomizes statistics, scales and biases, so that all of them matter, as in a trained network."""
    rng = np.random.default_rng(0)

    def replaced(path: Any, array: jax.Array) -> jax.Array:
        if path[-1].key == "kernel":
            return array
        centre = {"mean": 0.0, "bias": 0.0, "var": 1.0, "scale": 1.0}[path[-1].key]
        new = centre + 0.5 * rng.uniform(-1, 1, array.shape)
        return jnp.asarray(new, array.dtype)

    return jax.tree_util.tree_map_with_path(replaced, variables)


def evaluate(model: Any, images: jax.Array) -> jax.Array:
    """Returns the logits."""
    return model(images, train=False)


def measured(rounds: int) -> dict[str, Any]:
    """Returns a row for each network and batch size.

    Raises:
        RuntimeError: If the outputs differ, so that a comparison would be meaningless.
    """
    rows = []
    for name, network in NETWORKS.items():
        for n in BATCHES:
            rng = np.random.default_rng(n)
            images = jnp.asarray(rng.standard_normal((n, 32, 32, 3), np.float32))
            for jitted in (True, False):
                about = {"network": name, "batch": n, "jitted": jitted, "allocator": "keep"}
                rows.append(about | row(network, images, rounds, jitted=jitted))
    return {"machine": machine_used(), "versions": versions_used(), "rows": rows}


def row(network: Any, images: jax.Array, rounds: int, *, jitted: bool) -> dict[str, Any]:
    """Returns the figures of one network and batch."""
    models = {"Flax": network(norm=flax_norm), "jaxnorm": network(norm=jnl.BatchNorm)}
    ours = models["jaxnorm"]
    init = jax.jit(partial(ours.init, train=False))
    variables = trained(init(jax.random.key(0), images))
    folded = tools.fold(ours, images, variables=variables, run=evaluate)
    largest = float(abs(ours.apply(variables, images, train=False)).max())
    if not folded.difference < 1e-4 * largest:
        raise RuntimeError(
            f"outputs differ by {folded.difference:.2g}; the largest output is {largest:.2g}"
        )
    states = {"Flax": variables, "jaxnorm": variables, "folded": folded.variables}
    programs, counts = {}, {}
    for name, model in {**models, "folded": folded.model}.items():
        state = states[name]
        step = jax.jit(partial(model.apply, train=False)).lower(state, images).compile()
        alone = partial(model.apply, state, images, train=False)
        call = partial(step, state, images) if jitted else alone
        programs[name] = measure.Program(measure.repeated(call))
        counts[name] = {
            "roots": (step.as_text() or "").count(" rsqrt("),
            "arrays": len(jax.tree.leaves(state)),
            **measure.compiler_counts(step),
        }
    times = measure.in_turns(programs, rounds)
    return {
        "over": {name: measure.quartiles(times["folded"] / times[name]) for name in BEFORE},
        "milliseconds": {name: 1e3 * float(np.median(times[name])) for name in times},
        "difference": folded.difference,
        "largest": largest,
        "counts": counts,
    }


def table(found: dict[str, Any]) -> str:
    """Returns the figures of one machine and set of versions in Markdown."""
    lines = []
    for row in found["rows"]:
        before, after = row["counts"]["jaxnorm"], row["counts"]["folded"]
        lines.append(
            [
                row["network"],
                str(row["batch"]) if row["jitted"] else f"{row['batch']}, without jit",
                *("{1:.2f} ({0:.2f} to {2:.2f})".format(*row["over"][name]) for name in BEFORE),
                f"{after['bytes_accessed'] / before['bytes_accessed']:.2f}",
                *(f"{before[what]:.0f}, {after[what]:.0f}" for what in ("roots", "arrays")),
                f"{row['difference']:.0e} of {row['largest']:.2g}",
            ]
        )
    header = [
        "",
        "images",
        "time / with Flax's norms",
        "time / with ours",
        "read and written / ours",
    ]
    header += ["roots, before and after", "arrays held, likewise", "outputs off by"]
    return f"{found['machine']}; {found['versions']}\n\n{markdown(header, lines)}"


def section(stored: list[dict[str, Any]]) -> str:
    """Returns the section of the page with all stored figures."""
    return "\n\n".join(map(table, stored)) or NOTHING


def label_of(row: dict[str, Any]) -> str:
    """Returns the label below the points of a row."""
    return str(row["batch"]) if row["jitted"] else f"{row['batch']}\nwithout jit"


def draw(found: dict[str, Any]) -> None:
    """Draws the times relative to those with batch norms, with quartiles."""
    figure, panels = report.new_panels(
        f"Evaluation with batch norms folded, on {found['machine']}",
        [f"{name}: time over that with batch norms" for name in NETWORKS],
    )
    styles = {"Flax": (report.GREY, "s"), "jaxnorm": (report.BLUE, "o")}
    for axes, network in zip(panels, NETWORKS, strict=True):
        rows = [row for row in found["rows"] if row["network"] == network]
        rows.sort(key=lambda row: (not row["jitted"], row["batch"]))
        for place, (norm, (colour, marker)) in enumerate(styles.items()):
            low, middle, high = np.transpose([row["over"][norm] for row in rows])
            at = np.arange(len(rows)) + 0.16 * (place - 0.5)
            spread = [middle - low, high - middle]
            label = f"with the batch norms of {norm}"
            axes.errorbar(at, middle, spread, fmt=marker, color=colour, capsize=3, label=label)
        axes.axhline(1, color=report.GREY, lw=1)
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(rows)), [label_of(row) for row in rows])
        axes.set_xlabel("Images in the batch")
        axes.legend(loc="lower right", frameon=False)
    report.save(figure, PICTURE)


def main(options: Options) -> None:
    """Measures, prints the table, and stores the figures if requested."""
    if options.readme:
        results.into_page("folding", section, results.TABLES)
        for found in results.stored("folding"):
            draw(found)
        return
    found = measured(options.rounds)
    print(table(found))
    if options.write:
        results.keep("folding", found)


if __name__ == "__main__":
    chosen = tyro.cli(
        Options,
        prog="python -m benchmarks.folding",
        description=(__doc__ or "").split("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run_under("keep")
    main(chosen)
