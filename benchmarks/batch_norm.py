"""Batch norm in training, forward and backward, against Flax Linen: time, memory, bytes.

    python -m benchmarks.batch_norm
    python -m benchmarks.batch_norm --fold 1    # how the sums are taken; prints only

One program each computes y, dx, dscale and dbias from x and dy, in one process, in turn (ours, Flax,
Flax, ours, ...), so that what else the machine does hits both. The ratio is the median over the rounds.

With glibc's usual settings every buffer over 32 MB is mapped afresh on each call, and page faults
outweigh the arithmetic. So this runs with an allocator that keeps its pages: see `_keep_pages`.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax._src.ad_checkpoint import saved_residuals

import jaxnorm as jn
from jaxnorm.core import _reduce

SHAPES = (
    (64, 28, 28, 48),
    (96, 14, 14, 160),
    (128, 8, 8, 256),
    (128, 32, 32, 32),
    (4096, 512),
    (40009, 64),
    (256, 4, 4, 512),
)
ROUNDS, CALLS = 15, 3
RESULTS = Path(__file__).parent / "results"


def ours(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`jaxnorm.batch_norm`, without the running statistics."""
    return jn.batch_norm(x, jn.init_running_stats(x.shape[-1]), scale, bias, dtype=x.dtype)[0]


def theirs(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`flax.linen.BatchNorm`, likewise."""
    layer = nn.BatchNorm(use_running_average=False, dtype=x.dtype)
    stats = {"mean": jnp.zeros_like(bias), "var": jnp.ones_like(bias)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    y: Any = layer.apply(variables, x, mutable=["batch_stats"])[0]
    return y


def compiled(norm: Callable[..., jax.Array], *arguments: jax.Array) -> Any:
    """The program for y, dx, dscale, dbias from x, scale, bias, dy."""

    def forward_and_backward(x: Any, scale: Any, bias: Any, dy: Any) -> Any:
        y, pull_back = jax.vjp(norm, x, scale, bias)
        return y, pull_back(dy)

    return jax.jit(forward_and_backward).lower(*arguments).compile()


def saved_for_backward(norm: Callable[..., jax.Array], *arguments: jax.Array) -> int:
    """Bytes that differentiation keeps, x included, before a compiler may choose to recompute."""
    residuals: list[tuple[Any, str]] = saved_residuals(norm, *arguments)
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval, _ in residuals)


def seconds(program: Any, arguments: tuple[jax.Array, ...]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        jax.block_until_ready(program(*arguments))
    return (time.perf_counter() - start) / CALLS


def compare(shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    """Both programs on one shape.

    Raises:
        RuntimeError: their outputs disagree; then no time means anything.
    """
    x, dy = (jax.random.normal(jax.random.key(i), shape, dtype) for i in (0, 1))
    arguments = (x, jnp.ones(shape[-1]), jnp.zeros(shape[-1]), dy)
    programs = [compiled(norm, *arguments) for norm in (ours, theirs)]
    results = [program(*arguments) for program in programs]
    for mine, other in zip(*map(jax.tree.leaves, results), strict=True):
        largest = float(jnp.abs(other.astype(jnp.float32)).max())
        difference = float(jnp.abs(mine.astype(jnp.float32) - other.astype(jnp.float32)).max())
        if not difference <= 0.02 * largest:
            raise RuntimeError(f"{shape} {dtype.__name__}: results differ by {difference:.3g}")
    times: list[list[float]] = [[], []]
    for i in range(ROUNDS):
        for which in (0, 1) if i % 2 else (1, 0):
            times[which].append(seconds(programs[which], arguments))
    ratios = [mine / other for mine, other in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "shape": shape,
        "dtype": jnp.dtype(dtype).name,
        "time_ratio": statistics.median(ratios),
        "quartiles": [low, high],
        "milliseconds": [1e3 * statistics.median(t) for t in times],
        "temporaries_in_x": [p.memory_analysis().temp_size_in_bytes / x.nbytes for p in programs],
        "saved_in_x": [saved_for_backward(n, *arguments[:3]) / x.nbytes for n in (ours, theirs)],
        "bytes_accessed_in_x": [p.cost_analysis()["bytes accessed"] / x.nbytes for p in programs],
    }


def versions_used() -> str:
    """Of what a figure depends on."""
    return f"jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Print the table in Markdown and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fold", type=int, help="elements that one reduction folds at most")
    options = parser.parse_args()
    _reduce._UNROLLED = options.fold or _reduce._UNROLLED
    machine = f"{jax.default_backend()}, {os.cpu_count()} cores, {platform.machine()}"
    versions = versions_used()
    print(f"{machine}; {versions}\n")
    print(
        "| x | dtype | time / Flax's | quartiles | saved, ours / Flax | temporary | read and written |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = []
    for shape in SHAPES:
        for dtype in (jnp.float32, jnp.bfloat16):
            row = compare(shape, dtype)
            rows.append(row)
            low, high = row["quartiles"]
            saved, temporaries, accessed = (
                " / ".join(f"{n:.1f}" for n in row[f"{what}_in_x"])
                for what in ("saved", "temporaries", "bytes_accessed")
            )
            print(
                f"| {shape} | {row['dtype']} | {row['time_ratio']:.2f} | {low:.2f} to {high:.2f} "
                f"| {saved} N | {temporaries} N | {accessed} N |",
                flush=True,
            )
    for dtype in ("float32", "bfloat16"):
        ratios = [row["time_ratio"] for row in rows if row["dtype"] == dtype]
        print(f"\nGeometric mean in {dtype}: {statistics.geometric_mean(ratios):.2f}")
    if options.fold:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"batch_norm-{jax.default_backend()}-jax{jax.__version__}.json"
    path.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))


def _keep_pages() -> None:
    """Start again with an allocator that gives no memory back, unless that is so already."""
    limits = {"mmap_threshold": 1 << 32, "trim_threshold": 1 << 33, "top_pad": 1 << 28}
    tunables = ":".join(f"glibc.malloc.{name}={size}" for name, size in limits.items())
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = tunables
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.batch_norm", *sys.argv[1:]])


if __name__ == "__main__":
    _keep_pages()
    main()
