"""Every norm has its functions, classes, names, oracles, cases and pages.

An entry that one of these sets lacks fails by name, unless it is listed here with a reason.
"""

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest

import jaxnorm as jn
from docs._reference import on_page_markdown
from jaxnorm.norms._registry import REGISTRY, NormName
from tests import family, selecting
from tests.modules import OPTIONS
from tests.norms.test_zoo_state import STEPS
from tests.stands_for import CLASSES, ROWS, SYSTEMS, fields_of, is_wrapper
from tests.test_get_norm import NAMES
from tests.test_linen_nnx import MORE, WRAPPED
from tests.test_zoo_modules import CASES, STATE
from tests.zoo import ZOO

pytestmark = pytest.mark.every_case

ROOT = Path(jn.__file__).parents[1]
PAGES = ("README.md", "docs/norms.md", "docs/zoo.md")
FUNCTIONS = {name for name, thing in vars(jn).items() if inspect.isfunction(thing)}
NORMS = {name for norm in REGISTRY for name in norm.functions}
# Norms with an oracle outside tests.zoo and tests.family, and the file that compares them with NumPy.
ORACLES = {
    "act_norm_inverse": "tests/norms/test_zoo_facts.py",
    "batch_norm": "tests/norms/test_batch_norm.py",
    "batch_norm_adapted": "tests/norms/test_zoo_facts.py",
    "batch_norm_inference": "tests/norms/test_batch_norm.py",
    "batch_renorm_inference": "tests/norms/test_zoo_facts.py",
    "conv_spectral_norm": "tests/norms/test_weights.py",
    "evo_norm_b0_inference": "tests/norms/test_zoo_facts.py",
    "evo_norm_b1_inference": "tests/norms/test_zoo_facts.py",
    "evo_norm_b2_inference": "tests/norms/test_zoo_facts.py",
    "forced_magnitude": "tests/norms/test_weights.py",
    "input_norm_inference": "tests/norms/test_input_norm.py",
    "input_norm_inverse": "tests/norms/test_input_norm.py",
    "iterative_whitening_inference": "tests/norms/test_zoo_facts.py",
    "local_response_norm": "tests/norms/test_local_response.py",
    "magnitude_preserving": "tests/norms/test_weights.py",
    "mean_only_batch_norm_inference": "tests/norms/test_zoo_facts.py",
    "scaled_weight_standardization": "tests/norms/test_weights.py",
    "spectral_norm": "tests/norms/test_spectral_norm.py",
    "switchable_norm_inference": "tests/norms/test_zoo_facts.py",
    "tracked_instance_norm": "tests/norms/test_tracked_instance.py",
}
# Running statistics that are tested outside tests/norms/test_zoo_state.py.
STATES = {
    "batch_norm": "tests/norms/test_batch_norm.py",
    "tracked_instance_norm": "tests/norms/test_tracked_instance.py",
}
# Norms without a row in the tables of the pages, and the norm whose row leads to them.
IN_THE_REFERENCE = {
    "act_norm_inverse": "act_norm",
    "batch_renorm_inference": "batch_renorm",
    "evo_norm_b0_inference": "evo_norm_b0",
    "evo_norm_b1_inference": "evo_norm_b1",
    "evo_norm_b2_inference": "evo_norm_b2",
    "iterative_whitening_inference": "iterative_whitening",
    "mean_only_batch_norm_inference": "mean_only_batch_norm",
    "switchable_norm_inference": "switchable_norm",
}


def function_of(norm: family.Norm) -> str:
    """The name of the function that a norm of tests.family calls."""
    return inspect.getclosurevars(norm.ours).nonlocals.get("norm", norm.ours).__name__


def left_out(wanted: Iterable[str], found: Iterable[str], but: Iterable[str] = ()) -> list[str]:
    """Wanted names that are neither found nor excused, and unnecessary excuses."""
    wanted, found, but = set(wanted), set(found), set(but)
    return sorted((wanted - found) ^ but)


def test_every_norm_has_an_oracle() -> None:
    """Every public norm has an oracle in float64."""
    found = {re.split("[, ]", key)[0] for key in ZOO}
    found |= {function_of(norm) for norm in (*family.NORMS.values(), *family.AXES.values())}
    assert left_out(NORMS, found, ORACLES) == [] and left_out(found, NORMS) == []
    for name, path in ORACLES.items():
        assert re.search(rf"\bjn\.{name}\b", (ROOT / path).read_text()), f"{name} in {path}"


def test_running_statistics_are_followed() -> None:
    """All functions that update running statistics, and all classes that store them, have tests of these."""
    parameters = {n: inspect.signature(getattr(jn, n)).parameters for n in NORMS}
    moving = {n for n, known in parameters.items() if {"stats", "momentum"} <= set(known)}
    moving |= {n for n in NORMS if f"{n}_inference" in NORMS}
    steps = {step.split(",")[0] for step in STEPS}
    followed = {n for n in moving for step in steps if n.startswith(step)}
    assert left_out(moving, followed, STATES) == [] and len(followed) == len(steps)
    tracked = {n for n in CASES if "momentum" in fields_of("linen", n)}
    assert (
        left_out(STATE, tracked, {"FrozenBatchNorm", "InputNorm"}) == []
        and left_out(tracked, STATE) == []
    )


def test_every_class_has_cases() -> None:
    """Every class is compared with its function, and Linen with NNX."""
    assert left_out(ROWS, CLASSES) == [] == left_out(CLASSES, ROWS)
    options = {*OPTIONS, *(name for name, _ in MORE.values())}
    wrappers = {name for name, _, _ in WRAPPED.values()}
    assert left_out(CLASSES, options | wrappers | CASES.keys()) == []
    assert left_out(wrappers, filter(is_wrapper, CLASSES)) == []


def test_the_selection_names_what_exists() -> None:
    """A representative that is renamed does not leave the selection of `make test` silently."""
    assert selecting.REPRESENTATIVES <= selecting.NORMS


def test_every_name_is_registered() -> None:
    """`NormName` has the names of the registry, each for one class and with a case in test_get_norm.py."""
    names = [norm.name for norm in REGISTRY if norm.name]
    assert sorted(names) == sorted(get_args(NormName)) == sorted(NAMES)
    layers = [norm.layer for norm in REGISTRY if norm.layer]
    assert len({*layers}) == len(layers) and {*layers} == {*CLASSES, "NoNorm"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_everything_is_documented(system: str) -> None:
    """Everything is in the reference and in a table of the pages, and every name has its measured row."""
    page = on_page_markdown((ROOT / "docs/reference.md").read_text())
    reference = re.findall(r"^::: (\S+)$", page, re.M)
    assert len({*reference}) == len(reference)
    assert left_out({f"jaxnorm.{n}" for n in FUNCTIONS}, reference) == []
    assert left_out({f"jaxnorm.{system}.{n}" for n in CLASSES}, reference) == []
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    words = re.findall(r"`([\w.]+)", pages)
    assert left_out(NORMS, words, IN_THE_REFERENCE) == [] and left_out(CLASSES, words) == []
    measured = re.findall(r"^\| (\w+) \| [\d.]+%", (ROOT / "docs/zoo.md").read_text(), re.M)
    assert left_out(NAMES, measured) == [] and left_out(measured, NAMES) == []
