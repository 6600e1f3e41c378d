"""The sdist and the wheel, built from this tree as `python -m build` builds them, and what they need.

The wheel is built from the unpacked sdist. With hatchling installed this needs no network. Otherwise
hatchling is downloaded into an isolated environment, and the tests are skipped if that fails.
"""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email import message_from_string
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

build = pytest.importorskip(
    "build", reason="the package `build` is not installed: pip install build"
)
build_env = importlib.import_module("build.env")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIRES = PROJECT["build-system"]["requires"]
NEEDED: list[str] = PROJECT["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
# What jaxnorm imports in functions that few call, or for annotations, and what brings it.
LATE = {"matplotlib": "plots", "optax": "flax"}
# Shows a norm, and what each package that needs Flax says.
PROGRAM = """
import importlib, jax.numpy as jnp, jaxnorm as jn
y, _ = jn.batch_norm(jnp.array([[0.0], [2.0]]), jn.init_running_stats(1), epsilon=0.0)
print(jn.__file__)
print(y.ravel().tolist())
for name in ("linen", "nnx", "tools"):
    try:
        print(importlib.import_module(f"jaxnorm.{name}").__name__)
    except ModuleNotFoundError as error:
        print(error)
"""


def built(source: Path, distribution: str, to: Path) -> Path:
    """Builds a ``distribution`` of ``source`` and returns its path."""
    if importlib.util.find_spec("hatchling"):
        return Path(build.ProjectBuilder(source).build(distribution, to))
    with build_env.DefaultIsolatedEnv() as env:
        try:
            env.install(REQUIRES)
        except subprocess.CalledProcessError:
            pytest.skip(f"{REQUIRES} is neither installed nor to be had")
        return Path(build.ProjectBuilder.from_isolated_env(env, source).build(distribution, to))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    if not (ROOT / "README.md").exists():
        pytest.skip("pyproject.toml names README.md, which is not there yet")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built(ROOT, "sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (p for p in folder.iterdir() if p.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the sdist."""
    return zipfile.ZipFile(built(sdist, "wheel", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """The wheel's METADATA."""
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def tracked(*folders: str) -> set[str]:
    """Files of the repository under ``folders``, without caches."""
    paths = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file())
    return {p.relative_to(ROOT).as_posix() for p in paths if "__pycache__" not in p.parts}


def test_sdist_can_be_tested(sdist: Path) -> None:
    """The source distribution has everything for building and testing it, and no leftovers."""
    held = {p.relative_to(sdist).as_posix() for p in sdist.rglob("*") if p.is_file()}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= held
    assert {n for n in tracked("jaxnorm", "tests") if n.endswith((".py", ".typed"))} <= held
    assert not {n for n in held if n.endswith(".pyc") or n.startswith((".git/", "runs/", "dist/"))}


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """The wheel has every file of jaxnorm/, including py.typed, and the license; no tests or examples."""
    names = set(wheel.namelist())
    package = {n for n in names if not n.split("/")[0].endswith(".dist-info")}
    assert package == tracked("jaxnorm") and "jaxnorm/py.typed" in package
    information = {n.split(".dist-info/")[1] for n in names - package}
    assert information == {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}


def test_metadata(metadata: Message) -> None:
    """The wheel requires only jax and NumPy, needs Python 3.11 or newer, and has the package's version."""
    needed = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(needed) == sorted(NEEDED)
    assert {Requirement(r).name for r in needed} == {"jax", "numpy"}
    assert {"flax", "plots"} <= {*metadata.get_all("Provides-Extra", [])}
    assert metadata["Name"] == "jaxnorm"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    version = (ROOT / "jaxnorm" / "__init__.py").read_text().split('__version__ = "')[1]
    assert version.startswith(metadata["Version"] + '"')


def imported(folder: str) -> set[str]:
    """Packages outside the standard library that the files of a folder of jaxnorm import."""
    found: set[str] = set()
    for path in (ROOT / "jaxnorm" / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - {*sys.stdlib_module_names}


def names(requirements: Iterable[str]) -> set[str]:
    """The names in a list of requirements."""
    return {Requirement(r).name for r in requirements}


def test_dependencies_are_those_that_are_imported() -> None:
    """The functions import what every user installs, and modules and tools also what their extras install."""
    needed, with_flax = names(NEEDED), names(EXTRAS["flax"])
    assert imported("core") | imported("norms") == needed
    of_flax = imported("linen") | imported("nnx") | imported("tools")
    assert of_flax - needed - LATE.keys() == with_flax
    assert LATE["matplotlib"] == "plots" and names(EXTRAS["plots"]) == {"matplotlib"}
    assert "optax" in names(distribution("flax").requires or [])


def test_supported_versions() -> None:
    """The package, hosted CI and the documentation agree on the versions of Python and jax."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    matrix = workflow["jobs"]["versions"]["strategy"]["matrix"]
    classifiers = PROJECT["project"]["classifiers"]
    pythons = [c.split(" :: ")[2] for c in classifiers if c.startswith("Programming Language ::")]
    assert matrix["python"] == pythons
    (oldest,) = (Requirement(r).specifier for r in NEEDED if Requirement(r).name == "jax")
    assert matrix["jax"] == [f"jax=={str(oldest).removeprefix('>=')}", "jax"]
    page = (ROOT / "docs" / "versions.md").read_text()
    assert f"| Python | {pythons[0]} | {', '.join(pythons)} |" in page
    assert f"| jax | {str(oldest).removeprefix('>=')} |" in page


def closure(requirements: Iterable[str]) -> Iterator[str]:
    """Names of the installed distributions that pip would install for a list of requirements."""
    waiting, seen = [Requirement(r) for r in requirements], set[tuple[str, str]]()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (wanted.name, extra) in seen:
                continue
            seen.add((wanted.name, extra))
            yield wanted.name
            further = map(Requirement, distribution(wanted.name).requires or [])
            waiting += [r for r in further if not r.marker or r.marker.evaluate({"extra": extra})]


def run_with(folder: Path, wheel: zipfile.ZipFile, requirements: Iterable[str]) -> list[str]:
    """Runs PROGRAM with the wheel and these requirements alone, linked to ``folder``; returns its lines."""
    folder.mkdir()
    wheel.extractall(folder)
    for name in {*closure(requirements)}:
        installed = distribution(name)
        for top in {p.parts[0] for p in installed.files or [] if p.parts[0] != ".."}:
            link, target = folder / top, Path(str(installed.locate_file(top)))
            if target.exists() and not link.exists():
                link.symlink_to(target)
    ran = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],  # -S: without the packages of this environment
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return ran.stdout.splitlines()


def test_without_flax(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """With what the wheel requires alone, functions work, and modules and tools say what to install."""
    text = (
        "Importing jaxnorm.linen, jaxnorm.nnx or jaxnorm.tools needs flax, which is not installed. "
        'Install it with: pip install "jaxnorm[flax]"'
    )
    file = str(tmp_path / "site" / "jaxnorm" / "__init__.py")
    ran = run_with(tmp_path / "site", wheel, NEEDED)
    assert ran == [file, "[-1.0, 1.0]", text, text, text]


def test_with_flax(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """With the extra for Flax, modules and tools can be imported, without matplotlib."""
    ran = run_with(tmp_path / "site", wheel, NEEDED + EXTRAS["flax"])
    assert ran[1:] == ["[-1.0, 1.0]", "jaxnorm.linen", "jaxnorm.nnx", "jaxnorm.tools"]


def test_a_figure_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of `examine` needs nothing more than Flax; its figure says what to install."""
    from jaxnorm import tools

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    examination = tools.Examination({}, {}, {}, 0.0)
    with pytest.raises(ModuleNotFoundError) as raised:
        examination.figure()
    assert str(raised.value) == (
        "A figure needs matplotlib, which is not installed. "
        'Install it with: pip install "jaxnorm[plots]"'
    )
    assert "0.0%" in str(examination)


@pytest.mark.thorough
def test_pip_installs_what_the_wheel_needs(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """In an empty environment, `pip install` of the wheel brings what the functions need, and not Flax."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    options = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    install = [python, "-m", "pip", "install", *options, str(wheel.filename)]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install jax here: {installed.stderr[-200:]}")
    ran = subprocess.run(
        [python, "-P", "-c", PROGRAM], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert ran.stdout.splitlines()[1] == "[-1.0, 1.0]"
    assert ran.stdout.count('pip install "jaxnorm[flax]"') == 3
