"""A pytest plugin that records which lines of the package each test reaches, and how long it takes.

In each xdist worker, coverage.py records the lines with the test as their context; the controlling
process collects times and outcomes.
"""

import json
import os
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

FOLDER = "MUTANTS_MEASURED"
"""The environment variable with the folder to write to."""


def pytest_configure(config: pytest.Config) -> None:
    """Starts recording."""
    folder = Path(os.environ[FOLDER])
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_Lines(folder / "coverage", config.rootpath))
    else:
        config.pluginmanager.register(_Times(folder / "times.json"))


class _Lines:
    def __init__(self, data: Path, root: Path) -> None:
        files = [str(root / "jaxnorm" / "*")]
        self.coverage = coverage.Coverage(
            str(data), data_suffix=True, include=files, config_file=False
        )
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("")

    def pytest_unconfigure(self) -> None:
        self.coverage.stop()
        self.coverage.save()


class _Times:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        self.not_passed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.not_passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        found = {"seconds": self.seconds, "not_passed": sorted(self.not_passed)}
        self.path.write_text(json.dumps(found))
