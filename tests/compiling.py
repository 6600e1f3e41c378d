"""How tests compile: quickly in `make test`, with users' settings in `make test-all`."""

import os
from importlib.metadata import version

EVERYTHING = os.environ.get("JAXNORM_TESTS") == "all"
"""Whether this is `make test-all`."""


def compiler_flags(*, exact_maxima: bool = False) -> str:
    """XLA_FLAGS for the tests and the processes that they start.

    Most of a test's time goes into compiling programs that run once. `make test` turns off LLVM's
    optimizations and generates code without MLIR where XLA can; XLA's own passes all run. Tests of
    compiler output use users' settings, and so does `make test-all`.

    Without MLIR, gradients of maxima of a norm differ (norms/maxima.py). ``exact_maxima`` keeps it.
    """
    if EVERYTHING:
        return ""
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    can_do_without = version("jaxlib").startswith(("0.8.", "0.9.", "0.10."))
    if can_do_without and not exact_maxima:
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)
