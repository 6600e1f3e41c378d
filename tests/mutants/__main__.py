"""`make mutants`: changes a line of the package, runs the tests that reach it, and reports if none fails.

A hundred changes are drawn. Each survivor is printed: a test is missing, or the line is unnecessary.
Measurements and results are kept in .mutants, so an interrupted run can be continued.

    python -m tests.mutants --tests tests/core --only jaxnorm/core
    python -m tests.mutants --only jaxnorm/core/_pool.py:67   # all changes of one line
    python -m tests.mutants --rerun-survivors                 # after tests were added
"""

import argparse
import difflib
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from .covering import CACHE, Measured, copied, digests, measured
from .mutations import Mutation, mutations_of, sample
from .running import Job, run

LAYERS = tuple(f"jaxnorm/{layer}/" for layer in ("core", "norms", "linen", "nnx", "tools"))
RESULTS = CACHE / "results.jsonl"


@dataclass(frozen=True)
class Result:
    """The result of a change: the test that noticed it, if any."""

    state: str
    path: str
    line: int
    before: str
    after: str
    tests: int
    killed_by: str
    seconds: float

    def __str__(self) -> str:
        if self.killed_by:
            verdict = f"killed by {self.killed_by}"
        else:
            verdict = f"SURVIVED {self.tests} tests" if self.tests else "SURVIVED: not covered"
        change = f"{self.before} -> {self.after or '(nothing)'}"
        return f"{self.path}:{self.line}: {change}\n    {verdict}, {self.seconds:.0f} s"


def arguments() -> argparse.Namespace:
    """The command-line arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    add = parser.add_argument
    add("--count", type=int, default=100, help="how many changes to draw (100)")
    add("--seed", type=int, default=0)
    add("--only", default="jaxnorm", metavar="PATH[:LINE]", help="what to change")
    add("--tests", nargs="+", default=[], metavar="PATH", help="what pytest runs")
    add("--workers", type=int, default=2, help="processes at a time (2)")
    add("--most", type=float, metavar="SECONDS", help="run no more tests of a change than this")
    add("--allow", type=int, default=5, help="how many may survive (5)")
    add("--list", action="store_true", help="print the changes and run nothing")
    add("--rerun-survivors", action="store_true", help="run what survived last time")
    return parser.parse_args()


def main() -> None:
    """Runs the changes; exits with 1 if too many survive."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(Path(folder))
        paths = sorted(path.relative_to(tree).as_posix() for path in tree.glob("jaxnorm/**/*.py"))
        meant = [path for path in paths if is_meant(path, options.only)]
        sources = {path: (tree / path).read_text() for path in meant}
        mutations = chosen(sources, options)
        if not options.list:
            sys.exit(try_all(mutations, sources, tree, options))
    for mutation in mutations:
        before, after = mutation.shown(sources[mutation.path])
        print(f"{mutation.path}:{mutation.line}: {before} -> {after or '(nothing)'}")


def try_all(
    mutations: list[Mutation], sources: Mapping[str, str], tree: Path, options: argparse.Namespace
) -> bool:
    """Runs the changes and prints the results; returns whether too many survive."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    may_differ = options.rerun_survivors
    tests = measured(tree, options.tests, options.workers, tests_may_differ=may_differ)
    results: dict[Mutation, Result] = {}
    for mutation, result in results_of(mutations, sources, tests, tree, options):
        results[mutation] = result
        print(result, flush=True)
    survivors = [m for m in mutations if not results[m].killed_by]
    print(*[diff(m, sources[m.path]) for m in survivors], sep="\n")
    always = failing_anyway({result.killed_by for result in results.values()}, tests, tree)
    if always:
        print("these tests fail here without a change too, and show nothing:", *always, sep="\n")
    print(f"{len(survivors)} of {len(mutations)} mutants survived")
    return bool(always) or len(survivors) > options.allow


def is_meant(path: str, only: str) -> bool:
    """Whether a file is to be changed."""
    is_in = Path(only.partition(":")[0]) in [Path(path), *Path(path).parents]
    return is_in and path.startswith(LAYERS) and path.endswith(".py")


def chosen(sources: Mapping[str, str], options: argparse.Namespace) -> list[Mutation]:
    """A sample, all changes of a line, or the last survivors, even if their lines have moved."""
    line = options.only.partition(":")[2]
    if not line and not options.rerun_survivors:
        return sample(sources, options.count, options.seed)
    found = [m for path, source in sources.items() for m in mutations_of(path, source)]
    if line:
        found = [m for m in found if m.line == int(line)]
    if options.rerun_survivors:
        last = {(r.path, r.before, r.after): r.killed_by for r in past_results()}
        found = [m for m in found if last.get((m.path, *m.shown(sources[m.path]))) == ""]
    return [m for m in found if m.is_valid(sources[m.path])]


def past_results() -> list[Result]:
    """The results of all runs, latest last."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def results_of(
    mutations: list[Mutation],
    sources: Mapping[str, str],
    tests: Measured,
    tree: Path,
    options: argparse.Namespace,
) -> Iterator[tuple[Mutation, Result]]:
    """The result of each change, from an interrupted run or as soon as it is known."""
    now = digests(tree)
    state = hashlib.sha256(repr((now, options.tests, options.most)).encode()).hexdigest()[:16]
    past = {(r.path, r.line, r.before, r.after): r for r in past_results() if r.state == state}
    jobs = []
    for mutation in mutations:
        key = (mutation.path, mutation.line, *mutation.shown(sources[mutation.path]))
        job = job_of(mutation, tests, tests.changed_tests(now), tree, options.most)
        if key in past:
            yield mutation, past[key]
        elif not job.files:
            yield mutation, kept(Result(state, *key, tests=0, killed_by="", seconds=0.0))
        else:
            jobs.append(job)
    for job, outcome in run(jobs, options.workers):
        assert job.mutation is not None
        changed, by, seconds = job.mutation, outcome.killed_by, round(outcome.seconds, 1)
        shown = changed.shown(sources[changed.path])
        result = Result(state, changed.path, changed.line, *shown, len(job.tests), by, seconds)
        yield changed, kept(result)


def kept(result: Result) -> Result:
    """Appends a result to the file with the results of all runs."""
    with RESULTS.open("a") as file:
        print(json.dumps(asdict(result)), file=file)
    return result


def job_of(
    mutation: Mutation, tests: Measured, changed: set[str], tree: Path, most: float | None
) -> Job:
    """The tests to run against a change: those that reach it, and files that have changed since."""
    covering = [test for test in tests.covering(mutation) if file_of(test) not in changed]
    ends = list(accumulate(tests.seconds[test] for test in covering))
    if most is not None:
        covering = [test for test, end in zip(covering, ends, strict=True) if end <= most]
    known = [test for test in (*tests.seconds, *tests.others) if file_of(test) not in changed]
    return Job(
        tree,
        mutation,
        covering,
        sorted({file_of(test) for test in covering} | changed),
        frozenset(known),
        limit=60 + 3 * sum(tests.seconds[test] for test in covering) + 300 * len(changed),
    )


def failing_anyway(killers: set[str], tests: Measured, tree: Path) -> list[str]:
    """The tests that also fail without a change, because of their order or at random."""
    found = sorted(killer for killer in killers if killer.startswith("tests/"))
    known = frozenset([*tests.seconds, *tests.others])
    limit = 600 + 3 * sum(tests.seconds.get(test, 0) for test in found)
    job = Job(tree, None, found, sorted(set(map(file_of, found))), known, limit)
    outcomes = [outcome for _, outcome in run([job] if found else [], 1)]
    return [test for outcome in outcomes for test in outcome.failed if test in found]


def file_of(test: str) -> str:
    """The file of a test."""
    return test.split("::")[0]


def diff(mutation: Mutation, source: str) -> str:
    """A change as a patch."""
    before, after = source.splitlines(), mutation.apply(source).splitlines()
    lines = difflib.unified_diff(before, after, "a/" + mutation.path, "b/" + mutation.path, n=2)
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


main()
