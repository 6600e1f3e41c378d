"""The machine and the library versions that a measurement depends on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def machine_used() -> str:
    """Describes the backend, the device, the number of cores and the architecture."""
    import jax  # imported late: benchmarks set environment variables for its libraries first

    kind = jax.devices()[0].device_kind
    backend = jax.default_backend() + ("" if kind == "cpu" else f" ({kind})")
    return f"{backend}, {os.cpu_count()} cores, {platform.machine()}"


def versions_used(*others: str) -> str:
    """Lists the versions of jax, flax, the distributions `others`, and Python."""
    names = [f"{name} {version(name)}" for name in ("jax", "flax", *others)]
    return ", ".join([*names, f"Python {platform.python_version()}"])


def processor_used() -> str:
    """Returns the name of the processor: Linux's, or else Python's, which may be empty."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
