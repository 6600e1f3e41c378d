"""Runs tests against a change, each in a separate process and copy of the repository.

The process is forked from this one, which has imported jax and Flax but neither jaxnorm nor a test: a new
interpreter would take seconds to start.
"""

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from .covering import ROOT
from .mutations import Mutation

PRELOADED = ("jax", "flax.linen", "flax.nnx", "jax.experimental.pallas", "optax", "chex")
NOT_THE_COPY = 99
"""The exit code of a process that has imported a jaxnorm other than its copy."""


@dataclass(frozen=True)
class Job:
    """Tests to run.

    Attributes:
        tree: the files of the repository.
        mutation: the change; None: the repository as it is.
        tests: the tests in order; if there is a change, the run stops at the first failure.
        files: the files of these tests, and those of new tests.
        known: other tests in these files, which are not run. Unknown tests are new, and run first.
        limit: seconds.
    """

    tree: Path
    mutation: Mutation | None
    tests: Sequence[str]
    files: Sequence[str]
    known: frozenset[str]
    limit: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job: the exit code (None if it exceeded the limit), and the failures."""

    code: int | None
    failed: list[str]
    last: str
    seconds: float

    @property
    def killed_by(self) -> str:
        """The test or event that noticed the change; empty if there was none."""
        if self.code == pytest.ExitCode.OK:
            return ""
        if self.failed:
            return self.failed[0]
        if self.code == pytest.ExitCode.NO_TESTS_COLLECTED:
            return "no test left"
        return f"{'time limit' if self.code is None else f'crash ({self.code})'} in {self.last}"


class Chosen:
    """The pytest plugin of a job: selects and orders the tests, and records their outcomes."""

    def __init__(self, job: Job, report: Path) -> None:
        self.places = {test: i for i, test in enumerate(job.tests)}
        self.known = job.known
        self.report = report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keeps the tests of the job, and new ones."""
        kept = [i for i in items if i.nodeid in self.places or i.nodeid not in self.known]
        items[:] = sorted(kept, key=lambda item: self.places.get(item.nodeid, -1))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Checks that the copy is tested."""
        file = getattr(sys.modules.get("jaxnorm"), "__file__", None)
        if file and session.config.rootpath not in Path(file).parents:
            pytest.exit(f"imported {file}", NOT_THE_COPY)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Records that a test starts."""
        self.write("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records that a test failed."""
        if report.failed:
            self.write("failed", report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Records that a file could not be imported."""
        if report.failed:
            self.write("failed", f"the import of {report.nodeid}")

    def write(self, event: str, nodeid: str) -> None:
        """Appends a line to the report."""
        with self.report.open("a") as file:
            print(event, nodeid, file=file)


class Running:
    """A job in its process and folder, until it has an outcome."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        copy = shutil.copytree(job.tree, self.folder / "copy")
        if job.mutation:
            path = copy / job.mutation.path
            path.write_text(job.mutation.apply(path.read_text()))
        self.report = self.folder / "report"
        self.report.touch()
        self.started = time.monotonic()
        fork = multiprocessing.get_context("fork")
        self.process: BaseProcess = fork.Process(target=run_here, args=(job, self.folder))
        self.process.start()

    @property
    def is_over(self) -> bool:
        """Whether the process has ended or exceeded its limit."""
        return not self.process.is_alive() or time.monotonic() > self.started + self.job.limit

    def outcome(self) -> Outcome:
        """The outcome of the job."""
        code = None if self.process.is_alive() else self.process.exitcode
        seconds = time.monotonic() - self.started
        events = [line.split(" ", 1) for line in self.report.read_text().splitlines()]
        failed = [test for event, test in events if event == "failed"]
        if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, NOT_THE_COPY):
            sys.exit((self.folder / "output").read_text()[-5000:])
        return Outcome(code, failed, events[-1][1] if events else "collecting", seconds)

    def end(self) -> None:
        """Removes all processes and files."""
        if self.process.is_alive():
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def run(jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Outcome]]:
    """Runs jobs, a few at a time; yields each as it ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    os.environ["JAX_PLATFORMS"] = "cpu"
    for module in PRELOADED:
        importlib.import_module(module)
    waiting, running = iter(jobs), list[Running]()
    try:
        while True:
            while len(running) < workers and (job := next(waiting, None)):
                running.append(Running(job))
            if not running:
                return
            wait([r.process.sentinel for r in running], timeout=1)
            for over in [r for r in running if r.is_over]:
                outcome = over.outcome()
                running.remove(over)
                over.end()
                yield over.job, outcome
    finally:
        for r in running:
            r.end()


def run_here(job: Job, folder: Path) -> None:
    """Runs the tests of a job in this process and exits."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    copy = folder / "copy"
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p).resolve() != ROOT)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("jaxnorm", "tests")]:
        del sys.modules[name]
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"]
    options += ["-x"] if job.mutation else []
    code = pytest.main([*options, *job.files], plugins=[Chosen(job, folder / "report")])
    sys.stdout.flush()
    os._exit(code)
