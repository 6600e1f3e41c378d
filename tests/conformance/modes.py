"""The modes: which of Flax's tests run, which of Flax's classes are replaced, and the expected outcome."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.compiling import compiler_flags

ROOT = Path(__file__).parents[2]
NAMES = (
    "BatchNorm",
    "LayerNorm",
    "RMSNorm",
    "GroupNorm",
    "InstanceNorm",
    "SpectralNorm",
    "WeightNorm",
)
LINEN = (
    "linen/linen_test.py::NormalizationTest",
    "linen/linen_transforms_test.py::TransformTest::test_vmap_batchnorm",
)
NNX = (
    "nnx/nn/normalization_test.py",
    "nnx/nn/linear_test.py::TestLayersSameGraph",
    "nnx/nn/linear_test.py::TestLayersParamsMetadata",
)
# Flax's tests that our classes must fail, and why.
BETTER = {
    "linen/linen_test.py::NormalizationTest::test_weight_norm_compatibility_with_partitioning": (
        "demands a variable's name that says whether the kernel is boxed: after flax.linen.unbox it would "
        "not be found; ours reads both names (tests/linen/test_wrapped_layers.py)"
    ),
    "linen/linen_test.py::NormalizationTest::test_instance_norm3": (
        "demands x - x.mean() in float32 at a mean of 1e4, to 1e-6; that is 1e-3 from float64, and ours, "
        "5e-4 from it (tests/norms/test_laws.py), cannot agree"
    ),
}


@dataclass(frozen=True)
class Mode:
    """The modules of Flax whose norms are replaced, and the tests to run.

    Attributes:
        name: the name in the table.
        modules: "linen", "nnx" or both.
        tests: node ids relative to the folder of Flax's tests.
        close: whether to compare approximately. Flax's NNX tests require results equal to Linen's bit for
            bit. If only one of the two is replaced, this is impossible: Flax's variance has larger
            rounding errors, and Linen returns NaN for a full mask. Then rounding errors, and numbers
            instead of NaN, are accepted.
    """

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    close: bool = False

    @property
    def replaced(self) -> list[str]:
        """The classes that must be replaced, such as linen.BatchNorm."""
        return [f"{module}.{name}" for module in self.modules for name in NAMES]


MODES = (
    Mode("linen alone", ("linen",), LINEN),
    Mode("nnx alone", ("nnx",), NNX, close=True),
    Mode("linen and nnx", ("linen", "nnx"), LINEN + NNX),
)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a mode.

    Attributes:
        passed: how many tests passed.
        built: instances of each class, such as jaxnorm.linen.BatchNorm.
        problems: why the mode fails; empty if it does not.
        output: the output of pytest.
    """

    passed: int
    built: dict[str, int]
    problems: list[str]
    output: str


def run(mode: Mode, tests: Path, leave: Collection[str] = ()) -> Outcome:
    """Runs a mode in a new interpreter, on Flax's tests in the folder ``tests``.

    Classes in ``leave`` are not replaced but still required, to test that a missing replacement is
    noticed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = [f"--watch={path}" for path in mode.replaced]
        options += [f"--replace={path}" for path in mode.replaced if path not in leave]
        options += ["--close"] if mode.close else []
        # -P and -c: ignore the folder of the tests and the settings of this repository.
        pytest = [sys.executable, "-P", "-m", "pytest", "-q", "--tb=short", "-c", os.devnull]
        plugins = ["-p", "no:cacheprovider", "-p", "tests.conformance.plugin"]
        ran = subprocess.run(
            [*pytest, *plugins, f"--rootdir={tests}", f"--report={report}", *options, *mode.tests],
            cwd=tests,
            env=environment(tests),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        found = json.loads(report.read_text()) if report.exists() else {}
    built = found.get("built", {})
    failed = found.get("failed", [])
    problems = [f"failed: {test}" for test in failed + found.get("error", []) if test not in BETTER]
    problems += [f"passed: {test}" for test in found.get("passed", []) if test in BETTER]
    if ran.returncode and not failed and not problems:
        problems.append(f"pytest ended with {ran.returncode}")
    for path in mode.replaced:
        if not built.get(f"jaxnorm.{path}"):
            problems.append(f"jaxnorm.{path} was never built")
        if built.get(f"flax.{path}"):
            problems.append(f"flax.{path} was built in spite of its replacement")
    return Outcome(len(found.get("passed", [])), built, problems, ran.stdout)


def environment(tests: Path) -> dict[str, str]:
    """The current environment, with jaxnorm importable and without settings of this repository's tests.

    Compiled programs are cached next to the tests for the next mode, since compiling takes most of the
    time.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiler_flags(),
        "JAX_COMPILATION_CACHE_DIR": str(tests / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
