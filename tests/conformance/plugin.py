"""The pytest plugin for Flax's tests: replaces Flax's classes with ours and counts instances."""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The tolerance between Linen's results and ours if only one of them is replaced. float32: Flax computes
# the variance as the mean of squares minus the square of the mean, which puts its results up to 2e-5 from
# float64 in these tests (groups of two close values). float16: two roundings of values of order 1. The
# tolerance is also absolute, because the linear layer after each norm can cancel.
APART: Mapping[str, float] = {"float16": 2e-3, "float32": 1e-4}

built: dict[str, int] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that `run` in modes.py uses."""
    parser.addoption("--replace", action="append", default=[], help="such as linen.BatchNorm")
    parser.addoption("--watch", action="append", default=[], help="classes of Flax's to count")
    parser.addoption("--close", action="store_true", help="equal may be up to roundings")
    parser.addoption("--report", type=Path, help="where to write what happened")


def pytest_configure(config: pytest.Config) -> None:
    """Replaces classes before Flax's test modules are imported, since some create layers in decorators."""
    option: Any = config.option
    originals = {path: named("flax", path) for path in option.watch}
    for path in option.replace:
        ours = named("jaxnorm", path)
        if ours is originals[path]:
            raise pytest.UsageError(f"jaxnorm.{path} is Flax's own")
        replace(originals[path], ours)
        count(ours, f"jaxnorm.{path}")
    for path, theirs in originals.items():
        count(theirs, f"flax.{path}")
    if option.close:
        np.testing.assert_array_equal = assert_close


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the report: instances of each class, and the tests by outcome."""
    option: Any = session.config.option
    stats: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    tests = {k: [r.nodeid for r in stats.getreports(k)] for k in ("passed", "failed", "error")}
    option.report.write_text(json.dumps({"built": built, **tests}))


def named(package: str, path: str) -> type:
    """The class ``path``, such as linen.BatchNorm, of ``package``."""
    module, name = path.split(".")
    try:
        return getattr(importlib.import_module(f"{package}.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"no {package}.{path}: {error}") from error


def replace(theirs: type, ours: type) -> None:
    """Replaces a class wherever Flax has bound it: its attention modules also bind LayerNorm."""
    flax = [m for name, m in sys.modules.items() if name.split(".")[0] == "flax"]
    for module in flax:
        for name in [n for n, value in vars(module).items() if value is theirs]:
            setattr(module, name, ours)


def count(cls: type, label: str) -> None:
    """Counts the instances of ``cls`` and its subclasses.

    This uses ``__new__``, because Linen gives every class, also one that `nn.vmap` derives, its own
    ``__init__``. The class remains the same object with the same name.
    """
    built[label] = 0

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        built[label] += 1
        return object.__new__(cls)

    cls.__new__ = staticmethod(__new__)


def assert_close(linen: Any, nnx: Any) -> None:
    """`np.testing.assert_array_equal` up to rounding; integers must be equal.

    For a full mask, Flax's Linen returns NaN, and ours must be finite. (Flax passes the state of spectral
    norm in the opposite order, but after the outputs, which would show a NaN in ours.)
    """
    linen, nnx = np.asarray(linen), np.asarray(nnx)
    assert linen.shape == nnx.shape
    tolerance = max(APART.get(a.dtype.name, 0.0) for a in (linen, nnx))
    known = ~np.isnan(linen)
    np.testing.assert_allclose(nnx[known], linen[known], rtol=tolerance, atol=tolerance)
    assert np.isfinite(nnx[~known]).all()
