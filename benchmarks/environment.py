"""The environment variables that measurements run with."""

import os
import sys
from typing import Literal, TypeAlias

Allocator: TypeAlias = Literal["keep", "default"]

# OpenMP threads (PyTorch's) that spin while they wait slow down whatever runs next.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# With glibc's defaults, every buffer over 32 MB is mapped again on each call, and page faults add to the
# time. "keep" never returns memory to the system.
KEEP = {"mmap_threshold": 1 << 32, "trim_threshold": 1 << 33, "top_pad": 1 << 28}
TUNABLES: dict[Allocator, str] = {
    "keep": ":".join(f"glibc.malloc.{name}={size}" for name, size in KEEP.items()),
    "default": "",
}


def run_under(allocator: Allocator) -> None:
    """Restarts this program with this environment, unless it is already set: libraries read it only once."""
    wanted = {**PASSIVE, "GLIBC_TUNABLES": TUNABLES[allocator]}
    if any(os.environ.get(name, "") != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
