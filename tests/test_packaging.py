"""The sdist and the wheel, built from this tree as `python -m build` builds them.

The wheel is built from the unpacked sdist. With hatchling installed this needs no network. Otherwise
hatchling is downloaded into an isolated environment, and the tests are skipped if that fails.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

build = pytest.importorskip(
    "build", reason="the package `build` is not installed: pip install build"
)
build_env = importlib.import_module("build.env")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIRES = PROJECT["build-system"]["requires"]


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
    """The wheel requires only jax and flax, needs Python 3.11 or newer, and has the package's version."""
    needed = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(needed) == sorted(PROJECT["project"]["dependencies"])
    assert {r.split(">")[0] for r in needed} == {"jax", "flax"}
    assert metadata["Name"] == "jaxnorm"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    version = (ROOT / "jaxnorm" / "__init__.py").read_text().split('__version__ = "')[1]
    assert version.startswith(metadata["Version"] + '"')


def test_installed_wheel_works(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Installed without the repository, both entry points import and normalize."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--disable-pip-version-check", "--no-compile", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, *options, str(wheel.filename)], check=True)
    program = (
        "import jax.numpy as jnp, jaxnorm as jn, jaxnorm.linen as jnl; "
        "y, _ = jn.batch_norm(jnp.array([[0.0], [2.0]]), jn.init_running_stats(1), epsilon=0.0); "
        "print(jn.__file__, y.ravel().tolist(), jnl.BatchNorm.__name__)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split(maxsplit=1) == [
        str(tmp_path / "site" / "jaxnorm" / "__init__.py"),
        "[-1.0, 1.0] BatchNorm\n",
    ]
