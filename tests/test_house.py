"""The rules of the repository: public names, imports between layers, and examples that run."""

import ast
import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import itertools
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import pytest

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.norms._registry import REGISTRY
from jaxnorm.norms._shared._recipe import Recipe
from jaxnorm.norms._shared._weight_recipe import WeightRecipe
from tests.selecting import thorough_but

pytestmark = pytest.mark.every_case

ROOT = Path(jaxnorm.__file__).parents[1]
PACKAGE = ROOT / "jaxnorm"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = ["jaxnorm", *(m.name for m in pkgutil.walk_packages(jaxnorm.__path__, "jaxnorm."))]
NORM_CLASSES = sorted({norm.layer for norm in REGISTRY if norm.layer} - {"NoNorm"})
# Classes made from a recipe or another class, with fields described where they are defined.
DERIVED = {
    name for name in NORM_CLASSES if issubclass(getattr(jaxnorm.linen, name), Recipe | WeightRecipe)
}
DERIVED |= {"GhostBatchNorm"}
OF_CORE = {
    *("Moments", "moments", "pool", "combine", "portable"),
    *("RunningStats", "init_running_stats", "update_running_stats"),
}
PUBLIC = {
    "jaxnorm": sorted({n for norm in REGISTRY for n in norm.functions + norm.helpers} | OF_CORE),
    "jaxnorm.linen": sorted([*NORM_CLASSES, "NormName", "get_norm"]),
    "jaxnorm.nnx": sorted([*NORM_CLASSES, "NormName", "get_norm"]),
    "jaxnorm.tools": [
        "Accumulated",
        "Examination",
        "Folded",
        "LayerHealth",
        "Parity",
        "RunningNorm",
        "TrainState",
        "accumulate",
        "assert_parity",
        "average",
        "convert",
        "decay_mask",
        "examine",
        "fold",
        "freeze",
        "keep_finite",
        "norm_mask",
        "pool_replicas",
        "recalibrate",
        "swap",
        "torch_options",
        "unfreeze",
    ],
}
OBJECTS = [
    getattr(importlib.import_module(m), n)
    for m, names in PUBLIC.items()
    for n in names
    if n != "NormName"  # a Literal, which has no docstring
]
NEVER_RAISE = {"decay_mask", "portable"}
FUNCTIONS = [o for o in OBJECTS if inspect.isfunction(o)]

# The drawing of the package: each row imports only from rows below it.
_, _ROWS, *_ = (PACKAGE / "README.md").read_text().split("```")
DRAWING = [
    ["." if r == "jaxnorm" else r for r in row.split()] for row in _ROWS.strip().splitlines()
]
MAY_IMPORT_FLAX = {"linen", "nnx", "tools"}
# All that a layer that only stores variables needs from jax.numpy: dtypes and conversions to arrays.
OF_JNP = {"asarray", "complex64", "complexfloating", "dtype", "float32", "issubdtype"}
ARITHMETIC = {"cumsum", "dot", "max", "mean", "min", "prod", "std", "sum", "var"}


def name_of(path: Path) -> str:
    """A file's path in the repository, as the id of its test."""
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The folder of a file, as the drawing names it."""
    names = {room for row in DRAWING for room in row}
    folders = path.relative_to(PACKAGE).parents
    return next(f.as_posix() for f in folders if f.as_posix() in names)


def layer_of(path: Path) -> str:
    """The subpackage of a file; "" at the top."""
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Absolute names, split into parts, of the modules that a file imports, also inside functions."""
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            # from .. import name: the name may be a module
            yield from ((*module, alias.name) for alias in node.names)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    """The public names of each module are exactly those of the registry and those listed above."""
    members = vars(importlib.import_module(module)).items()
    found = [n for n, o in members if not n.startswith("_") and not isinstance(o, ModuleType)]
    assert sorted(found) == PUBLIC[module]


def test_modules_are_private() -> None:
    """Every module except the public ones and their layers has an underscore, so none is shadowed."""
    public = {m for m in MODULES if not any(p.startswith("_") for p in m.split("."))}
    rooms = {f"jaxnorm.{room}".replace("/", ".") for row in DRAWING for room in row}
    assert public - {"jaxnorm"} <= rooms


def test_import_is_light() -> None:
    """`import jaxnorm` imports neither Flax nor large parts of JAX that JAX itself does not import."""
    program = "import sys, jaxnorm; sys.exit(bool({'flax', 'jax.extend'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_few_need_is_imported_late(path: Path) -> None:
    """Libraries for optimizers, tables and pictures are imported only where they are used."""
    top = [node for node in ast.parse(path.read_text()).body]
    late = {"optax", "rich", "matplotlib"}
    assert not late & {
        name.name.split(".")[0]
        if isinstance(node, ast.Import)
        else (node.module or "").split(".")[0]
        for node in top
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_internals_of_jax_are_taken_in_one_file(path: Path) -> None:
    """Only two files use internals of JAX: one explains each, the other reads jaxprs for a tool."""
    if name_of(path) in ("jaxnorm/core/_jax.py", "jaxnorm/tools/_fold/_dataflow.py"):
        return
    internals = {"_src", "ad_checkpoint", "custom_derivatives", "extend", "interpreters"}
    assert not [m for m in imports(path) if m[0] == "jax" and m[1:2] and m[1] in internals]
    assert "manual_axis_type" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms(path: Path) -> None:
    """A file imports from its room and from rooms drawn below it, and Flax only where modules are made."""
    rows = {room: row for row, rooms in enumerate(DRAWING) for room in rooms}
    room = room_of(path)
    for module in imports(path):
        assert module[:1] != ("flax",) or layer_of(path) in MAY_IMPORT_FLAX, f"imports {module}"
        if module[:1] != ("jaxnorm",):
            continue
        target = ROOT.joinpath(*module)
        is_module = target.is_dir() or target.with_suffix(".py").exists()
        other = room_of((target if is_module else target.parent) / "_")
        inside = other == room or (room[:4] == other[:4] == "core")
        assert inside or rows[other] > rows[room], f"{room} imports {other}"


def test_the_drawing_has_every_room() -> None:
    """Every drawn room is a folder, and every folder but one within a room is drawn."""
    drawn = [room for row in DRAWING for room in row]
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in FILES}
    assert len(drawn) == len({*drawn})
    assert folders - {*drawn} == {"tools/_convert/_formats"} and {*drawn} <= folders
    kinds = {norm.kind for norm in REGISTRY}
    assert {f"norms/{kind}" for kind in kinds} <= {*drawn}


@pytest.mark.parametrize("norm", REGISTRY, ids=lambda norm: norm.layer or norm.functions[0])
def test_a_norm_is_in_the_room_of_its_kind(norm: Any) -> None:
    """The recipe of a norm, or its functions if it has none, are in ``norms/<kind>``."""
    layer = getattr(jaxnorm.linen, norm.layer or "", object)
    found: list[Any] = [base for base in layer.__bases__ if issubclass(base, Recipe)]
    found = found or [getattr(jaxnorm, name) for name in norm.functions]
    assert all(f"jaxnorm.norms.{norm.kind}." in o.__module__ for o in found)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_size(path: Path) -> None:
    """Files are short enough to be read in one sitting."""
    assert len(path.read_text().splitlines()) <= 250


def sums_in(source: str) -> list[str]:
    """All arithmetic on arrays in ``source``: operators, methods, and names from jax.numpy or lax."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(op=ast.BitOr()):  # a union of types
                continue
            case ast.BinOp() | ast.AugAssign() | ast.UnaryOp(op=ast.Invert()):
                found.append(ast.unparse(node))
            case ast.Attribute(value=ast.Name(id="jnp"), attr=name) if name not in OF_JNP:
                found.append(ast.unparse(node))
            case ast.Name(id="lax") | ast.Attribute(value=ast.Name(id="jax"), attr="lax"):
                found.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr=name)) if name in ARITHMETIC:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", [f for f in FILES if layer_of(f) in ("linen", "nnx")], ids=name_of)
def test_modules_hold_no_arithmetic(path: Path) -> None:
    """Modules create variables, call functions and store state, without arithmetic of their own."""
    assert sums_in(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["y = x - mean", "x *= s", "jnp.mean(x)", "x.mean()", "jax.lax.psum(x)", "lax.rsqrt(x)"],
)
def test_arithmetic_is_seen(source: str) -> None:
    """The rule above detects arithmetic, and allows annotations and dtypes."""
    assert sums_in(source)
    assert not sums_in("x: int | None = jnp.asarray(y, jnp.float32)")


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda o: f"{o.__module__}.{o.__name__}")
def test_docstring_has_an_example(thing: Any) -> None:
    """Every public name has an example, which `test_doctests` runs."""
    assert ">>> " in (inspect.getdoc(thing) or "")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_docstring_of_a_function(function: Any) -> None:
    """A docstring describes each argument, in order, the result, and the errors."""
    doc = inspect.getdoc(function) or ""
    sections = dict(re.findall(r"^(Args|Returns|Raises|Example):\n((?:(?: .*)?\n?)+)", doc, re.M))
    refuses = ["Raises"] if function.__name__ not in NEVER_RAISE else []
    parameters = list(inspect.signature(function).parameters)
    assert list(sections) == [*(["Args"] if parameters else []), "Returns", *refuses, "Example"]
    described = re.findall(r"^ {4}(\w+): ", sections.get("Args", ""), re.M)
    assert described == parameters
    assert not refuses or "ValueError: " in sections["Raises"]


def test_only_the_modules_that_flax_has_are_written_out() -> None:
    """Their signatures follow Flax's; all others follow from one recipe for both frameworks."""
    written = [name for name in NORM_CLASSES if name not in DERIVED]
    assert written and all(hasattr(nn, name) for name in written)


@pytest.mark.parametrize("name", [n for n in NORM_CLASSES if n not in DERIVED])
@pytest.mark.parametrize("system", [jaxnorm.linen, jaxnorm.nnx], ids=["linen", "nnx"])
def test_docstring_of_a_module_class(system: ModuleType, name: str) -> None:
    """A module class describes each of its fields, in order."""
    norm = getattr(system, name)
    sections = re.split(r"^(\w+):\n", inspect.getdoc(norm) or "", flags=re.M)
    fields = sections[sections.index("Attributes" if system is jaxnorm.linen else "Args") + 1]
    described = re.findall(r"^ {4}(\w+): ", fields, re.M)
    parameters = list(inspect.signature(norm.__init__).parameters)
    assert described == [n for n in parameters if n not in ("self", "parent", "name")]


@pytest.mark.parametrize("path", [f for f in FILES if layer_of(f) == "norms"], ids=name_of)
def test_recipes_describe_their_fields(path: Path) -> None:
    """Each field of a recipe has a docstring, since modules have no other text about it."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ClassDef) or "dataclass" not in map(
            ast.unparse, (d.func for d in node.decorator_list if isinstance(d, ast.Call))
        ):
            continue
        for field, after in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), ast.unparse(field)
                assert isinstance(after.value, ast.Constant), ast.unparse(field)


# The classes in _derived have the examples of the recipes.
@pytest.mark.parametrize(
    "module", thorough_but(MODULES, *(m for m in MODULES if not m.endswith("._derived")))
)
def test_doctests(module: str) -> None:
    """Every example of the package prints the stated output, also under strict promotion."""
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(importlib.import_module(module)):
        runner.run(test, out=report.write)
    assert runner.summarize(verbose=False).failed == 0, report.getvalue()


def pages() -> list[Path]:
    """The pages for users outside the package."""
    return [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.exists()]


def snippets() -> list[Any]:
    """Code that must run by itself, named by page and line: a block of README.md, or all blocks of a page.

    Each comes with the text that it must print, from the blocks after it. A block below ``<!-- needs: X -->``
    is left out where X is not installed.
    """
    found = []
    for page in pages():
        text = page.read_text()
        blocks: list[tuple[int, str, list[str]]] = []
        pattern = r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```)?"
        for block in re.finditer(pattern, text, re.M | re.S):
            needs = re.search(r"<!-- needs: (\w+) -->\n$", text[: block.start()])
            if needs and not importlib.util.find_spec(needs[1]):
                continue
            line = text[: block.start()].count("\n") + 2
            printed = [block[2]] if block[2] else []
            if page.name == "README.md" or not blocks:
                blocks.append((line, block[1], printed))
            else:  # a page of the documentation is read from the top
                line, before, printed_before = blocks[-1]
                blocks[-1] = line, before + block[1], printed_before + printed
        found += [pytest.param(*b, id=f"{name_of(page)}:{line}") for line, *b in blocks]
    return found


@pytest.mark.parametrize(("snippet", "printed"), snippets())
def test_snippets(
    snippet: str, printed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python blocks of README.md and of each page run, with the promotion that users have."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        if ">>> " in snippet:
            test = doctest.DocTestParser().get_doctest(snippet, namespace, "snippet", None, 0)
            assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
        else:
            exec(compile(snippet, "snippet", "exec"), namespace)
    lines = {line.rstrip() for line in output.getvalue().splitlines()}
    assert not [line for text in printed for line in text.splitlines() if line not in lines]
