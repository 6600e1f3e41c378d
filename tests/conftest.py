"""What every test runs under: 8 CPU devices, no silent promotion."""

import os

# Before jax starts: how many devices the CPU shows is fixed then.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax

# A broadcast or a widening that nobody wrote is a bug in a library of numerics.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
