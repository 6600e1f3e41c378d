"""What a figure depends on: the machine and the versions."""

import os
import platform
from importlib.metadata import version


def machine_used() -> str:
    """Backend, device, cores, architecture."""
    import jax  # here: benchmarks set the environment of its libraries first

    kind = jax.devices()[0].device_kind
    backend = jax.default_backend() + ("" if kind == "cpu" else f" ({kind})")
    return f"{backend}, {os.cpu_count()} cores, {platform.machine()}"


def versions_used(*others: str) -> str:
    """Of what a figure depends on; `others` are the distributions of more peers."""
    names = [f"{name} {version(name)}" for name in ("jax", "flax", *others)]
    return ", ".join([*names, f"Python {platform.python_version()}"])
