"""`make conformance`: Flax's own tests of its norms, run with our classes.

The tests come from the source distribution of the installed Flax, and are not kept. Each mode prints how
many tests passed, and how many instances of our classes they created.
"""

import sys
import tempfile
from pathlib import Path

from .modes import BETTER, MODES, NAMES, Mode, Outcome, run
from .source import NotToBeHad, flax_source


def rows(mode: Mode, outcome: Outcome) -> list[str]:
    """A line for each module that the mode replaces."""
    lines = []
    for module in mode.modules:
        counts = [outcome.built.get(f"jaxnorm.{module}.{name}", 0) for name in NAMES]
        cells = [f"{n:>{len(name)}}" for n, name in zip(counts, NAMES, strict=True)]
        first = module == mode.modules[0]
        mode_cells = [f"{mode.name if first else '':14}", f"{outcome.passed if first else '':>6}"]
        lines.append("  ".join([*mode_cells, f"{'jaxnorm.' + module:13}", *cells]))
    return lines


def main() -> None:
    """Runs the modes and prints the table; exits with 1 if any of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tests = flax_source(Path(folder))
        except NotToBeHad as error:
            sys.exit(str(error))
        print("  ".join([f"{'mode':14}", "passed", f"{'instances of':13}", *NAMES]), flush=True)
        failed = False
        for mode in MODES:
            outcome = run(mode, tests)
            print(*rows(mode, outcome), sep="\n", flush=True)
            if outcome.problems:
                failed = True
                print(outcome.output, *outcome.problems, sep="\n", flush=True)
    for test, reason in BETTER.items():
        print(f"not passed, as expected: {test} {reason}")
    sys.exit(failed)


main()
