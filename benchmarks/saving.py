"""Compares what batch norm can save for the backward pass of a deep stack: time, memory, gradient error.

    python -m benchmarks.saving [--write]
    python -m benchmarks.saving --readme        # write the stored figures to tables.md

Each row is a training step of dense → batch norm → leaky_relu, 16 times. The rows differ only in the norm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import measure, results
from benchmarks.environment import run_under
from benchmarks.step_models import DEPTH
from benchmarks.steps import memory, train_step
from benchmarks.tables import NOTHING, markdown
from examples.environment import machine_used, versions_used
from jaxnorm import linen as jnl

ROWS, WIDTH = 8192, 128
FLAX = "flax.linen.BatchNorm, then leaky_relu"
UNIT = 'BatchNorm(activation="leaky_relu")'
LAYERS: dict[str, Callable[[], Any]] = {
    FLAX: lambda: nn.BatchNorm(False),
    "jaxnorm.linen.BatchNorm, then leaky_relu": lambda: jnl.BatchNorm(False),
    UNIT: lambda: jnl.BatchNorm(False, activation="leaky_relu"),
    f"{UNIT[:-1]}, save_as=jnp.bfloat16)": lambda: jnl.BatchNorm(
        False, activation="leaky_relu", save_as=jnp.bfloat16
    ),
    f'{UNIT[:-1]}, save_as="output")': lambda: jnl.BatchNorm(
        False, activation="leaky_relu", save_as="output"
    ),
}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    rounds: int = 9
    """Rounds in which every row is timed."""
    write: bool = False
    """Store the figures in benchmarks/results."""
    readme: bool = False
    """Measure nothing; write the table of the stored figures to benchmarks/tables.md."""


class Stack(nn.Module):
    """Dense → norm → leaky_relu, repeated; the norm may apply leaky_relu itself."""

    norm: Callable[[], Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array with the shape of x."""
        for _ in range(DEPTH):
            norm = self.norm()
            x = norm(nn.Dense(x.shape[-1], use_bias=False)(x))
            x = x if getattr(norm, "activation", None) else nn.leaky_relu(x)
        return x


def data() -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets."""
    rng = np.random.default_rng(0)
    x, target = (jnp.asarray(rng.standard_normal((ROWS, WIDTH), np.float32)) for _ in range(2))
    return x, target


def start(norm: Callable[[], Any], x: jax.Array) -> tuple[Callable[..., Any], Any]:
    """Returns a stack as a function of its state, and the state."""
    model = Stack(norm)
    variables = model.init(jax.random.key(0), x)

    def apply(params: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        y, updated = model.apply(variables, x, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    return apply, (variables["params"], variables["batch_stats"])


def gradient(norm: Callable[[], Any], x: jax.Array, target: jax.Array) -> np.ndarray:
    """The gradient of the mean squared error for all parameters."""
    apply, (params, stats) = start(norm, x)
    loss = lambda params: jnp.mean((apply(params, stats, x)[0] - target) ** 2)  # noqa: E731
    return np.concatenate([np.ravel(g) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params))])


def measured(rounds: int) -> dict[str, Any]:
    """Returns the figures of each row.

    Raises:
        RuntimeError: If the gradients differ, so that a comparison would be meaningless.
    """
    x, target = data()
    exact = gradient(LAYERS[FLAX], x, target)
    programs, rows = {}, []
    for name, norm in LAYERS.items():
        found = gradient(norm, x, target)
        error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        if not error < 0.01:
            raise RuntimeError(f"{name}: gradients differ from Flax's by {error:.2g} of their norm")
        apply, state = start(norm, x)
        step = jax.jit(lambda state, apply=apply: train_step(apply, state, x, target))
        compiled = step.lower(state).compile()
        programs[name] = measure.Program(
            measure.repeated(lambda c=compiled, s=state: c(s)), counted=memory(compiled)
        )
        rows.append({"layer": name, "gradient_off_by": error})
    times = measure.in_turns(programs, rounds)
    for row in rows:
        name = row["layer"]
        row["over_flax"] = measure.quartiles(times[name] / times[FLAX])
        row["temporaries_a_layer"] = programs[name].counted["temporaries"] / x.nbytes / DEPTH
        row["allocator"] = "keep"
    return {"machine": machine_used(), "versions": versions_used(), "rows": rows}


def table(found: dict[str, Any]) -> str:
    """Returns the figures of one machine and set of versions in Markdown."""
    lines = [
        [
            f"`{row['layer']}`",
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*row["over_flax"]),
            f"{row['temporaries_a_layer']:.2f} N",
            f"{row['gradient_off_by']:.0e}",
        ]
        for row in found["rows"]
    ]
    header = ["", "time / Flax's", "temporary, a layer", "gradient / Flax's, off by"]
    return f"{found['machine']}; {found['versions']}\n\n{markdown(header, lines)}"


def section(stored: list[dict[str, Any]]) -> str:
    """Returns the section of the page with all stored figures."""
    return "\n\n".join(map(table, stored)) or NOTHING


def main(options: Options) -> None:
    """Measures, prints the table, and stores the figures if requested."""
    if options.readme:
        results.into_page("saving", section, results.TABLES)
        return
    found = measured(options.rounds)
    print(table(found))
    if options.write:
        results.keep("saving", found)


if __name__ == "__main__":
    chosen = tyro.cli(
        Options,
        prog="python -m benchmarks.saving",
        description=(__doc__ or "").split("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run_under("keep")
    main(chosen)
