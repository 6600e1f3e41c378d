"""Which tests should notice a change: measured once, and kept until the package or its tests change."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import coverage

from .measure import FOLDER
from .mutations import Mutation

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".mutants"


@dataclass(frozen=True)
class Measured:
    """The lines that the tests reach.

    Attributes:
        suite: the arguments of pytest; empty for its default.
        digests: digests of the files of the package and of the tests.
        seconds: the duration of each test that passed.
        others: the tests that did not pass, or were skipped.
        reached: for each file of the package and each of its lines, the tests as indices into
            ``seconds``.
    """

    suite: list[str]
    digests: dict[str, str]
    seconds: dict[str, float]
    others: list[str]
    reached: dict[str, dict[str, list[int]]]

    def is_of(self, suite: Sequence[str], digests: dict[str, str], under: str = "") -> bool:
        """Whether the files under a folder are unchanged."""
        then, now = (
            {path: digest for path, digest in of.items() if path.startswith(under)}
            for of in (self.digests, digests)
        )
        return (self.suite, then) == (list(suite), now)

    def changed_tests(self, digests: dict[str, str]) -> set[str]:
        """The test files of the suite that are new or have changed."""
        files = {path for path in digests if Path(path).name.startswith("test_")}
        if self.suite:
            files = {path for path in files if path.startswith(tuple(self.suite))}
        return {path for path in files if digests[path] != self.digests.get(path)}

    def covering(self, mutation: Mutation) -> list[str]:
        """The tests that should notice a change, likely and quick ones first.

        Tests of the same layer come before others, and one case of each test before further cases.
        """
        tests, lines = list(self.seconds), self.reached.get(mutation.path, {})
        for first, last in mutation.reached_at:
            found = {i for line in range(first, last + 1) for i in lines.get(str(line), [])}
            if found:
                found |= self._looking() if mutation.at_import else set()
                return self._in_order([tests[i] for i in found], mutation)
        return []

    def _looking(self) -> set[int]:
        """Quick tests that run no line of the package; slow ones may do so in another process."""
        running = {i for lines in self.reached.values() for found in lines.values() for i in found}
        return {i for i, t in enumerate(self.seconds.values()) if t < 1 and i not in running}

    def _in_order(self, tests: Iterable[str], mutation: Mutation) -> list[str]:
        layer = "/".join(["tests", *Path(mutation.path).parts[1:2], ""])
        cases: Counter[str] = Counter()
        keys = {}
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            name = test.split("[")[0]
            keys[test] = (cases[name], not test.startswith(layer))
            cases[name] += 1
        return sorted(keys, key=lambda test: keys[test])


def measured(tree: Path, suite: Sequence[str], workers: int, *, tests_may_differ: bool) -> Measured:
    """The last measurement if it is still valid, or else a new one."""
    path = CACHE / "measured.json"
    now = digests(tree)
    if path.exists():
        last = Measured(**json.loads(path.read_text()))
        if last.is_of(suite, now, under="jaxnorm/" if tests_may_differ else ""):
            return last
    print("measuring which lines each test reaches ...", flush=True)
    found = measure(tree, suite, workers)
    path.write_text(json.dumps(asdict(found)))
    return found


def measure(tree: Path, suite: Sequence[str], workers: int) -> Measured:
    """Runs the tests under coverage, in a copy of the repository like the changes."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = shutil.copytree(tree, Path(folder, "copy"))
        pytest = [sys.executable, "-m", "pytest", "-q", "--tb=line", f"-n{workers}"]
        ran = subprocess.run(
            [*pytest, "-p", "no:cacheprovider", "-p", "tests.mutants.measure", *suite],
            cwd=copy,
            # Tracers other than ctrace see a line once, in whichever test comes first.
            env={**os.environ, "PYTHONPATH": str(copy), FOLDER: folder, "COVERAGE_CORE": "ctrace"},
        )
        if ran.returncode > 1:
            sys.exit(f"pytest ended with {ran.returncode}")
        times = json.loads(Path(folder, "times.json").read_text())
        others = times["not_passed"]
        seconds = {k: v for k, v in times["seconds"].items() if k not in set(others)}
        reached = lines_reached(Path(folder), copy, list(seconds))
    return Measured(list(suite), digests(tree), seconds, others, reached)


def lines_reached(folder: Path, copy: Path, tests: list[str]) -> dict[str, dict[str, list[int]]]:
    """The tests that reach each line of each file, as indices into ``tests``."""
    places = {test: i for i, test in enumerate(tests)}
    of_all = coverage.Coverage(str(folder / "coverage"), config_file=False)
    of_all.combine([str(folder)])
    data = of_all.get_data()
    return {
        Path(file).relative_to(copy).as_posix(): {
            str(line): [places[c] for c in contexts if c in places]
            for line, contexts in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }


def copied(folder: Path) -> Path:
    """Copies the repository's files to a folder, including those that are not in git yet.

    Everything is read from there, so edits do not disturb a run.
    """
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for path in filter(lambda path: (ROOT / path).is_file(), listed.split("\0")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return folder


def digests(tree: Path) -> dict[str, str]:
    """Digests of the files of the package and the tests, except for this tool."""
    paths = [*tree.glob("jaxnorm/**/*.py"), *tree.glob("tests/**/*.py")]
    found = {
        path.relative_to(tree).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(paths)
    }
    return {path: digest for path, digest in found.items() if "mutants" not in path}
