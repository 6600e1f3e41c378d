"""Flax's own tests, from the source distribution of the installed Flax."""

import subprocess
import sys
import tarfile
import textwrap
from importlib.metadata import version
from pathlib import Path


class NotToBeHad(Exception):
    """Raised if the source distribution cannot be downloaded."""


def flax_source(folder: Path) -> Path:
    """Downloads Flax's source into ``folder``, unpacks its tests, and returns their path."""
    flax = f"flax=={version('flax')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    ran = subprocess.run(
        [*pip, flax, "--no-deps", "--no-binary=flax", "--dest", str(folder)],
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        said = [textwrap.shorten(line, 200) for line in ran.stderr.splitlines()[-3:]]
        raise NotToBeHad(
            f"Flax's tests come with the source distribution of {flax}, which pip could not "
            f"download. A network, or a pip that is configured for a mirror, is needed. "
            f"What pip said last: {'; '.join(said)}"
        )
    (archive,) = folder.glob("flax-*.tar.gz")
    with tarfile.open(archive) as tar:
        tests = [m for m in tar.getmembers() if Path(m.name).parts[1:2] == ("tests",)]
        tar.extractall(folder, members=tests, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "tests"
