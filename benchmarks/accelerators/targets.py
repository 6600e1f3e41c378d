"""Devices that are not there: their compilers run ahead of time on any x86 machine.

Import this before jax: the compilers read the environment when jax starts.
"""

import functools
import os
import re
from importlib.util import find_spec
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TPU: there is no chip to ask about or to lock.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

# Name: the topology of the smallest slice that libtpu knows, and what a larger one is called.
TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7": "tpu7x:2x2x1"}
TPU_SLICES = {4: "2x2", 8: "2x4", 64: "8x8", 256: "16x16"}


class Gpu(NamedTuple):
    """What XLA:GPU asks of a device, as its data sheet has it."""

    name: str
    capability: str
    cores: int
    fpus_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    bandwidth: int
    cache: int
    memory: int
    clock: float


_HOPPER = Gpu(
    "NVIDIA H100 80GB HBM3",
    "major: 9 feature_extension: ACCELERATED_FEATURES",
    cores=132,
    fpus_per_core=128,
    shared_memory_per_core=228 * 1024,
    shared_memory_per_block=227 * 1024,
    bandwidth=3_352_000_000_000,
    cache=50 * 2**20,
    memory=80 * 10**9,
    clock=1.98,
)
GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        "major: 8",
        cores=108,
        fpus_per_core=64,
        shared_memory_per_core=164 * 1024,
        shared_memory_per_block=163 * 1024,
        bandwidth=2_039_000_000_000,
        cache=40 * 2**20,
        memory=80 * 10**9,
        clock=1.41,
    ),
    "h100": _HOPPER,
    "h200": _HOPPER._replace(name="NVIDIA H200", bandwidth=4_800_000_000_000, memory=141 * 10**9),
    "b200": _HOPPER._replace(
        name="NVIDIA B200",
        capability="major: 10 feature_extension: ACCELERATED_FEATURES",
        cores=148,
        bandwidth=7_672_000_000_000,
        cache=126 * 2**20,
        memory=180 * 10**9,
        clock=1.965,
    ),
}
NEEDED = {"tpu": "libtpu", "gpu": "jax_plugins.xla_cuda12"}


def platform(target: str) -> str:
    """The platform of a target: "tpu" or "gpu"."""
    return "tpu" if target in TPUS else "gpu"


def missing(platform: str) -> str | None:
    """What must be installed to compile for a platform; None if it is there."""
    try:
        found = find_spec(NEEDED[platform]) is not None
    except ModuleNotFoundError:
        found = False
    if found:
        return None
    return (
        f"the compiler for a {platform.upper()} is not installed: make accelerators, "
        f"or pip install '.[{platform}]' in an environment of its own"
    )


@functools.cache
def devices(target: str, count: int = 1) -> list[Any]:
    """So many devices of a target."""
    if target in TPUS:
        slice_of = TPUS[target]
        if count > 4:
            slice_of = f"{slice_of.split(':')[0]}:{TPU_SLICES[count]}"
        topology = topologies.get_topology_desc(platform="tpu", topology_name=slice_of)
    else:
        where = f"1x1x{count}"
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=where,
            topology=where,
            target_config=_config_of(GPUS[target]),
        )
    return list(topology.devices)[:count]


def counts(target: str, *, quick: bool) -> tuple[int, ...]:
    """How many devices of a target there can be here, one alone left out."""
    several = tuple(TPU_SLICES) if target in ("v5e", "v6e") else (4 if target in TPUS else 8,)
    return several[:1] if quick else several


def mesh(target: str, count: int = 1) -> Mesh:
    """A mesh with one axis, "batch"."""
    return jax.sharding.Mesh(np.array(devices(target, count)), ("batch",))


def _config_of(gpu: Gpu) -> str:
    """A GpuTargetConfigProto in text format. The limits of a block are those of all GPUs of today."""
    text = f"""
    gpu_device_info {{
      threads_per_block_limit: 1024
      threads_per_warp: 32
      threads_per_core_limit: 2048
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      thread_dim_limit_x: 1024
      thread_dim_limit_y: 1024
      thread_dim_limit_z: 64
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: {gpu.shared_memory_per_block}
      shared_memory_per_core: {gpu.shared_memory_per_core}
      core_count: {gpu.cores}
      fpus_per_core: {gpu.fpus_per_core}
      memory_bandwidth: {gpu.bandwidth}
      l2_cache_size: {gpu.cache}
      device_memory_size: {gpu.memory}
      clock_rate_ghz: {gpu.clock}
      cuda_compute_capability {{ {gpu.capability} }}
      runtime_version: "12.9.0"
      compile_time_toolkit_version: "12.9.0"
      driver_version: "13.0.0"
      dnn_version: "9.10.0"
      name: "{gpu.name}"
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    device_description_str: "{gpu.name}"
    """
    return re.sub(r"^ {4}", "", text, flags=re.M)
