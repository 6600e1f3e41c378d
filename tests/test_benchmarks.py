"""The benchmarks of norms and steps: what they compare and refuse, and what their tables show."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from benchmarks import (
    cifar_step,
    contestants,
    folding,
    measure,
    norms,
    picture,
    programs,
    results,
    saving,
    step_models,
    steps,
    summary,
    tables,
    tracing,
)
from benchmarks.accelerators import tables as accelerators
from benchmarks.cases import DTYPES, IN_ROWS, NORMS, Case, Dtype, Norm, Phase, draw
from benchmarks.contestants import DIFFERENCES, FLAX, LIBRARIES, MODULES, OURS, Forward, installed
from benchmarks.truth import check, truth
from examples.page import with_section

pytestmark = pytest.mark.usefixtures("users_promotion")
SHAPES: dict[Norm, tuple[int, ...]] = {
    "batch": (5, 4, 3, 32),
    "layer": (3, 5, 32),
    "rms": (3, 5, 32),
    "group": (2, 3, 4, 64),
    "instance": (2, 3, 4, 32),
}


def small(norm: Norm) -> Case:
    """A case with a tiny activation."""
    return Case(norm, SHAPES[norm], "small")


@pytest.mark.sampled
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_contestants_agree_with_float64(library: str, norm: Norm) -> None:
    """Every library's norm matches float64 in its forward and backward passes."""
    pytest.importorskip(MODULES[library], exc_type=ImportError)
    case = small(norm)
    data = draw(case, "float32")
    program = norms.program_of(library, case, "both", data)
    if program is None:
        assert (library, norm) == ("Equinox", "instance")
        return
    check(library, case, "both", "float32", program.results(), truth(case, "both", data))
    counted = {"bytes_accessed", "temporaries", "saved"}
    assert set(program.counted) == (set() if library == "PyTorch" else counted)


@pytest.mark.parametrize(("phase", "dtype"), [("eval", "bfloat16"), ("forward", "float32")])
def test_measured(phase: Phase, dtype: Dtype) -> None:
    """The command measures batch norm for all installed libraries and prints the result."""
    row = norms.compare(small("batch"), phase, dtype, installed(), 1)
    assert list(row["contestants"]) == list(installed()) and row["left_out"] == {}
    for found in row["contestants"].values():
        assert found["milliseconds"] > 0 and found["of_copy"] > 0
        assert len(found["ours_over"]) == len(found["over_flax"]) == 3
    assert tables.progress(row).startswith(f"batch {phase} (5, 4, 3, 32) {dtype}: ")


def test_truth_is_the_gradient() -> None:
    """The closed-form gradient in float64 matches differences of the forward pass."""
    step = 1e-6
    for norm in NORMS:
        case = small(norm)
        data = draw(case, "float32")
        data = data._replace(x=data.x.astype(np.float64), dy=data.dy.astype(np.float64))
        towards = np.random.default_rng(1).standard_normal(case.shape)
        after, before = (
            truth(case, "forward", data._replace(x=data.x + sign * step * towards))[0]
            for sign in (1, -1)
        )
        slope = ((after - before) / (2 * step) * data.dy).sum()
        np.testing.assert_allclose((truth(case, "both", data)[1] * towards).sum(), slope, rtol=1e-6)


def off(wrong: Callable[[jax.Array], jax.Array]) -> Callable[[Case, bool], Forward]:
    """Flax's norm with a wrong y."""

    def contestant(case: Case, train: bool) -> Forward:
        def forward(x: Any, parameters: Any, stats: Any) -> Any:
            y, updated = contestants.linen(case, train)(x, parameters, stats)
            return wrong(y), updated

        return forward

    return contestant


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda y: y * 1.01, "y"),
        (lambda y: jax.lax.stop_gradient(y), "dx"),
        (lambda y: y * float("nan"), "y"),
    ],
    ids=["scaled", "no gradient", "nan"],
)
def test_wrong_result_is_refused(
    wrong: Callable[[jax.Array], jax.Array], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contestant with a wrong y or gradient is not timed."""
    monkeypatch.setitem(contestants.IN_JAX, FLAX, off(wrong))
    message = rf"Flax Linen, layer norm of \(3, 5, 32\) float32, both: {name} differs by"
    with pytest.raises(RuntimeError, match=message):
        norms.compare(small("layer"), "both", "float32", (OURS, FLAX), 1)


def test_missing_result_is_refused() -> None:
    """The number of results must be right."""
    case = small("rms")
    right = truth(case, "both", draw(case, "float32"))
    with pytest.raises(RuntimeError, match="2 results instead of 3"):
        check("someone", case, "both", "float32", right[:2], right)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=" ".join)
def test_what_is_left_out_is_different(difference: tuple[Any, ...]) -> None:
    """A library that is left out really differs (else it must come back), and the tables give the reason."""
    library, norm, phase, dtype = difference
    pytest.importorskip(MODULES[library], exc_type=ImportError)
    case = Case(norm, IN_ROWS["small"][0], "small")
    data = draw(case, dtype)
    program = norms.program_of(library, case, phase, data)
    assert program is not None
    with pytest.raises(RuntimeError, match="differs by"):
        check(library, case, phase, dtype, program.results(), truth(case, phase, data))
    row = norms.compare(small(norm), phase, dtype, (OURS, library), 1)
    assert library not in row["contestants"]
    assert tables.left_out([row])[0].endswith(f"{DIFFERENCES[difference]}.")


def figures(*ratios: dict[str, float], **others: Any) -> dict[str, Any]:
    """Made-up figures with these ratios to our time, by library."""
    rows = [
        {
            "allocator": "keep",
            "rounds": 3,
            "norm": "layer",
            "shape": [2, i],
            "size": "small",
            "phase": "both",
            "dtype": DTYPES[i % 2],
            "floor": 5,
            "contestants": {
                name: {
                    "milliseconds": 1.0,
                    "of_copy": 0.5,
                    "temporaries": 0.25,
                    "ours_over": [ratio / 2, ratio, 2 * ratio],
                    "over_flax": [0.5, 1.0, 2.0],
                }
                for name, ratio in {OURS: 1.0, **of_peers}.items()
            },
            "left_out": {},
        }
        for i, of_peers in enumerate(ratios)
    ]
    found = {"machine": "a", "versions": "b", "not_installed": [], "rows": rows}
    return {**found, **others}


def test_geometric_means() -> None:
    """The tables have geometric means of medians by dtype and overall, and dashes for missing figures."""
    found = figures({FLAX: 0.5}, {FLAX: 2.0}, {FLAX: 0.125, "Haiku": 3.0})
    printed = tables.norms(found).splitlines()
    assert not any(line.startswith("| all norms ") for line in printed)
    assert "| layer | forward and backward | float32 | 0.25 (0.50) | 3.00 (3.00) |" in printed
    assert "| layer | forward and backward | bfloat16 | 2.00 (2.00) | – |" in printed
    assert "| layer | forward and backward | both | 0.50 (2.00) | 3.00 (3.00) |" in printed
    found["rows"][0]["norm"] = "rms"
    printed = tables.norms(found).splitlines()
    assert "| all norms | forward and backward | both | 0.50 (2.00) | 3.00 (3.00) |" in printed


def test_turns() -> None:
    """The order is reversed every round, and a sample covers several calls."""
    ran: list[tuple[str, int]] = []
    programs = {
        name: measure.Program(lambda times, name=name: ran.append((name, times))) for name in "ab"
    }
    times = measure.in_turns(programs, 3)
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}
    samples = [(name, n) for name, n in ran[4:] if n > 1]
    assert "".join(name for name, _ in samples) == "abbaab"
    assert min(n for _, n in samples) >= 3
    assert measure.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 3.0, 4.0]


def test_kept_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New figures replace those of the same program and allocator, and all from other versions."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.keep("norms", figures({FLAX: 0.5}))
    default = figures({FLAX: 0.7})
    default["rows"][0]["allocator"] = "default"
    results.keep("norms", default)
    results.keep("norms", figures({FLAX: 0.6}))
    another = figures({FLAX: 0.9})
    another["rows"][0]["dtype"] = "float16"
    results.keep("norms", another)
    (stored,) = results.stored("norms")
    kept = [(r["allocator"], r["contestants"][FLAX]["ours_over"][1]) for r in stored["rows"]]
    assert sorted(kept) == [("default", 0.7), ("keep", 0.6), ("keep", 0.9)]
    assert "default allocator" in tables.norms(stored)
    results.keep("norms", figures({FLAX: 0.8}, versions="c"))
    assert len(results.stored("norms")[0]["rows"]) == 1


def test_readme_section() -> None:
    """Only the text between the marks is replaced."""
    marks = "<!-- norms: written by --readme -->\n", "<!-- end of norms -->\n"
    readme = "before\n{}{}{}after\n"
    found = with_section(readme.format(marks[0], "old\n", marks[1]), "norms", "new \\1")
    assert found == readme.format(marks[0], "\nnew \\1\n\n", marks[1])


@pytest.mark.parametrize(
    ("what", "section", "path"),
    [
        ("norms", tables.norms_section, results.TABLES),
        ("norms", tables.headline_section, results.PERFORMANCE),
        ("steps", steps.section, results.PERFORMANCE),
        ("saving", saving.section, results.TABLES),
        ("folding", folding.section, results.TABLES),
        ("tracing", tracing.section, results.PERFORMANCE),
        ("cifar_step", cifar_step.section, results.README),
        ("accelerators", accelerators.section, results.TABLES),
        ("accelerators", accelerators.summary_section, results.PERFORMANCE),
        ("accelerators", accelerators.moved_section, results.COSTS),
        ("summary", lambda _: summary.section(), results.PROJECT_README),
    ],
)
def test_pages_have_the_stored_figures(
    what: str, section: Callable[[Any], str], path: Path
) -> None:
    """The tables in the pages match benchmarks/results."""
    readme = path.read_text()
    assert section(results.stored(what)) in readme
    assert with_section(readme, what, section(results.stored(what))) == readme


def test_picture(tmp_path: Path) -> None:
    """The picture can be drawn for figures that lack a library and a norm."""
    picture.draw(figures({FLAX: 0.5}, {FLAX: 0.5, "PyTorch": 2.0}), tmp_path / "norms.png")
    assert (tmp_path / "norms.png").stat().st_size > 10_000


@pytest.mark.parametrize("modules", steps.MODULES)
def test_step(modules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our modules and Flax's have the same losses, and the table gets a row."""
    monkeypatch.setattr(steps, "MODULES", (modules,))
    monkeypatch.setattr(steps, "ROWS", (64, 16))
    monkeypatch.setattr(step_models, "DEPTH", 2)
    rows = steps.compare("16 x dense, BatchNorm", "float32", 1)
    assert [row["modules"] for row in rows] == [modules]
    stored = json.loads(json.dumps([{"allocator": "keep", **row} for row in rows]))
    found = {"machine": "a", "versions": "b", "rounds": 1, "rows": stored}
    assert steps.table(found).splitlines()[-1].startswith("| 16 x dense, BatchNorm | float32 |")


@pytest.mark.thorough
def test_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer has Flax's gradients and gets a row."""
    monkeypatch.setattr(saving, "ROWS", 256)
    monkeypatch.setattr(saving, "DEPTH", 2)
    found = json.loads(json.dumps(saving.measured(1)))
    assert len(saving.table(found).splitlines()) == 4 + len(saving.LAYERS)
    another = partial(saving.jnl.BatchNorm, False, activation="silu")
    monkeypatch.setitem(saving.LAYERS, saving.UNIT, another)
    with pytest.raises(RuntimeError, match="differ from Flax's by"):
        saving.measured(1)


@pytest.mark.thorough
def test_folding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every network gets a row, with no root after folding, and the picture is drawn."""
    small = partial(folding.CNN, widths=(4,), depth=1, stem_width=4)
    monkeypatch.setattr(folding, "NETWORKS", {"CNN": small})
    monkeypatch.setattr(folding, "BATCHES", (1, 2))
    monkeypatch.setattr(folding, "PICTURE", tmp_path / "folding.png")
    found = json.loads(json.dumps(folding.measured(1)))
    assert len(folding.table(found).splitlines()) == 4 + 4
    assert all(row["counts"]["folded"]["roots"] == 0 for row in found["rows"])
    folding.draw(found)
    assert (tmp_path / "folding.png").stat().st_size > 10_000
    monkeypatch.setattr(
        folding.tools,
        "fold",
        lambda model, *_, **__: folding.tools.Folded(model, None, 1e3, {}, {}, (0, 0)),
    )
    with pytest.raises(RuntimeError, match="outputs differ by"):
        folding.measured(1)


@pytest.mark.thorough
def test_cifar_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick measurement has one convolution and one step, is stored, and gets to the page."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "README", tmp_path / "README.md")
    monkeypatch.setattr(cifar_step, "CONVOLUTIONS", ((4, 8, 8),))
    results.README.write_text(
        "<!-- cifar_step: written by --readme -->\n<!-- end of cifar_step -->\n"
    )
    cifar_step.main(cifar_step.Options(quick=True, write=True))
    cifar_step.main(cifar_step.Options(readme=True))
    (found,) = results.stored("cifar_step")
    assert found["rounds"] == 2 and found["machine"].startswith(cifar_step.machine_used())
    assert found["rows"][0]["of_first"] == [1.0] * 3
    page = results.README.read_text()
    for part in (found["versions"], "| 4 to 8, 8x8 | ", "| a small network | "):
        assert part in page


@pytest.mark.thorough
def test_parts_of_the_cifar_step_are_replaced() -> None:
    """The network is traced with the given norm and max pool."""
    used = []

    class Norm(nn.Module):
        def __call__(self, x: jax.Array, **_: Any) -> jax.Array:
            used.append("norm")
            return x

    def pool(x: jax.Array) -> jax.Array:
        used.append("pool")
        return cifar_step.window_pool(x)

    program = cifar_step.training(cifar_step.SMALL, norm=Norm, pool=pool)
    assert set(used) == {"norm", "pool"} and program.counted["images"] == 16
    assert cifar_step.models.max_pool is not pool


def test_all_of_the_cifar_step_is_stored() -> None:
    """What is stored has all convolutions and steps, unlike a quick measurement."""
    for found in results.stored("cifar_step"):
        sizes = ("channels", "pixels", "features")
        shapes = [tuple(row[size] for size in sizes) for row in found["convolutions"]]
        assert shapes == list(cifar_step.CONVOLUTIONS)
        assert [row["name"] for row in found["rows"]] == list(cifar_step.STEPS)


def test_cifar_step_tables() -> None:
    """Speeds are rounded, and the ratio is to the first step."""
    shape = {"channels": 3, "pixels": 8, "features": 4}
    found = {
        "machine": "a",
        "versions": "b",
        "rounds": 1,
        "convolutions": [shape | dict.fromkeys(cifar_step.PASSES, 12.3)],
        "rows": [
            {"name": "quick", "images_a_second": 1234.5, "of_first": [1.0, 1.0, 1.0]},
            {"name": "full", "images_a_second": 456.7, "of_first": [0.3, 0.37, 0.4]},
        ],
    }
    lines = cifar_step.section([found]).splitlines()
    assert lines[0] == "a; b; 1 rounds"
    assert lines[4] == "| 3 to 4, 8x8 | 12 | 12 | 12 |"
    assert lines[6] == "| training step | images a second | speed / quick (quartiles) |"
    assert lines[-1] == "| full | 457 | 0.37 (0.30 to 0.40) |"


def test_step_with_another_loss_is_refused() -> None:
    """Losses that differ by more than the dtype's tolerance are refused."""
    steps.agree("here", "bfloat16", [1.0], [1.005])
    with pytest.raises(RuntimeError, match="here: the first losses are"):
        steps.agree("here", "float32", [1.0], [1.005])


@pytest.mark.parametrize(("norm", "by"), [("rms", ["library"]), ("layer", ["loop"] * 3)])
def test_programs(norm: Norm, by: list[str]) -> None:
    """A float32 RMS norm takes one library program; layer norm loops over x: a value, its sums, y."""
    case, size = Case(norm, (4096, 64), "large"), 4096 * 64 * 4
    forward = contestants.ours(case, True)
    found = programs.parts(measure.compiled(forward, "forward", draw(case, "float32")))
    of_x = [part for part in found if part.reads >= size]
    assert [part.by.split(",")[0] for part in of_x] == by
    assert sum(part.writes >= size for part in of_x) == 1
    assert programs.table(case, "float32", "forward").count("small ones") == 2  # ours, Flax's


def test_what_was_not_compiled_is_empty() -> None:
    """A part of the programs is enough for the table of what norms move."""
    found = results.stored("accelerators")[0]
    a_part = [row for row in found["rows"] if row["program"].startswith("LayerNorm")]
    lines = accelerators.moved_section([{**found, "rows": a_part}]).splitlines()
    assert [line.endswith("|  |") for line in lines[2:]] == [
        "LayerNorm" not in s for s in lines[2:]
    ]


def test_a_part_that_is_measured_again_keeps_the_rest(tmp_path: Path) -> None:
    """Rows of the same program are replaced in their place, others stay, and those of other versions go."""
    path = tmp_path / "stored.json"

    def rows(*pairs: tuple[str, int]) -> list[dict[str, Any]]:
        return [{"name": name, "time": time} for name, time in pairs]

    old = rows(("a", 1), ("a", 2), ("b", 3), ("b", 4))
    path.write_text(json.dumps({"versions": "1", "rows": old}))
    now = rows(("c", 5), ("a", 6), ("a", 7), ("a", 8))
    together = rows(("a", 6), ("a", 7), ("a", 8), ("b", 3), ("b", 4), ("c", 5))
    for versions, expected in {"1": together, "2": now}.items():
        found = {"versions": versions, "rows": now}
        assert results.with_others(found, path)["rows"] == expected
