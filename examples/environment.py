"""The machine and the library versions that a measurement depends on."""

import os
import platform
from importlib.metadata import version


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
