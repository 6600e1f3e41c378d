"""The environment that a measurement runs under."""

import os
import sys
from typing import Literal, TypeAlias

Allocator: TypeAlias = Literal["keep", "default"]

# Threads of OpenMP (PyTorch's) that spin while they wait slow whatever runs next.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# With glibc's defaults, every buffer over 32 MB is mapped afresh on each call, and page faults are added
# to the time. "keep" gives no memory back.
KEEP = {"mmap_threshold": 1 << 32, "trim_threshold": 1 << 33, "top_pad": 1 << 28}
TUNABLES: dict[Allocator, str] = {
    "keep": ":".join(f"glibc.malloc.{name}={size}" for name, size in KEEP.items()),
    "default": "",
}


def run_under(allocator: Allocator) -> None:
    """Starts this program again under its environment, unless it has that already: libraries read it once."""
    wanted = {**PASSIVE, "GLIBC_TUNABLES": TUNABLES[allocator]}
    if any(os.environ.get(name, "") != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
