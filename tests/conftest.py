"""What every test runs under: 8 CPU devices, no silent promotion."""

import os
from collections.abc import Iterator

# Before jax starts, when these are fixed. Most of the suite's time is LLVM optimizing programs that run
# once; XLA's own passes stay. Processes of their own (examples, maxima of y) compile as users' do.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest

# A broadcast or a widening that nobody wrote is a bug in a library of numerics.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def users_promotion() -> Iterator[None]:
    """The promotion of dtypes and ranks that users have."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
