"""Small image data sets for the examples: CIFAR-10, and scikit-learn's digits.

    data = load()            # CIFAR-10 if it is available, otherwise digits
    data.train_images        # uint8, (N, H, W, C)

CIFAR-10 (170 MB) is downloaded once into the user's cache folder. To use a copy you already
have, unpack ``cifar-10-binary.tar.gz`` and set ``data_dir`` or the environment variable
``JAXNORM_DATA`` to the folder that contains ``cifar-10-batches-bin/``.
"""

import gzip
import hashlib
import http.client
import os
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

DATA_VARIABLE = "JAXNORM_DATA"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
TEXT_FILES = ("batches.meta.txt", "readme.html")
MEMBERS = {FOLDER} | {f"{FOLDER}/{name}" for name in (*TRAIN_FILES, TEST_FILE, *TEXT_FILES)}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD_BYTES = 1 + 3 * 32 * 32  # the label, then the pixels as (channel, row, column)
TIMEOUT_SECONDS = 10  # for connecting and for each chunk: `auto` must not hang without a network
CHUNK_BYTES = 1 << 16
BY_HAND = (
    f"unpack cifar-10-binary.tar.gz yourself and set {DATA_VARIABLE} "
    f"to the folder that contains {FOLDER}/"
)

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


class DataError(RuntimeError):
    """A data set could not be loaded. The message says what is required, what was found and what to do."""


class Dataset(NamedTuple):
    """Images and labels. `name` is "cifar10" or "digits"; `classes` are the names of the labels.

    Images are uint8, shape (N, H, W, C), 0 to 255. Labels are int32, shape (N,), each an index
    into `classes`.
    """

    name: str
    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels
    classes: tuple[str, ...]

    def first(self, train: int, test: int | None = None) -> "Dataset":
        """Returns the first `train` training images and the first `test` test images (None: all)."""
        return self._replace(
            train_images=self.train_images[:train],
            train_labels=self.train_labels[:train],
            test_images=self.test_images[:test],
            test_labels=self.test_labels[:test],
        )


class Archive(NamedTuple):
    """The location of a CIFAR-10 archive and its expected contents."""

    url: str
    size: int  # bytes
    sha256: str  # lower-case hexadecimal
    records: int = 10_000  # images in each of its .bin files


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


def load(
    name: Literal["auto", "cifar10", "digits"] = "auto",
    data_dir: Path | None = None,
    *,
    archive: Archive = CIFAR10,
) -> Dataset:
    """Loads a data set, downloading it on first use.

    Args:
        name: "cifar10", "digits", or "auto": CIFAR-10 if it is available, otherwise digits, with one
            line on standard error that says why.
        data_dir: The folder that contains ``cifar-10-batches-bin/``. It takes precedence over
            `JAXNORM_DATA`, which takes precedence over the cache. Not used for digits.
        archive: Where CIFAR-10 is downloaded from.

    Raises:
        DataError: If the data set cannot be loaded. With "auto", only for a folder given by
            `data_dir` or `JAXNORM_DATA`: data that you ask for is never replaced.
    """
    if name not in ("auto", "cifar10", "digits"):
        raise DataError(f"name must be auto, cifar10 or digits; got {name!r}; use one of those")
    if name == "digits":
        return _digits()
    given = data_dir or os.environ.get(DATA_VARIABLE)
    if given:
        folder = Path(given).expanduser()
        remedy = f"unpack cifar-10-binary.tar.gz in {folder}"
        return _cifar10(folder / FOLDER, archive.records, remedy)
    try:
        folder = _fetch(archive)
        return _cifar10(folder, archive.records, f"delete the folder {folder} and run again")
    except DataError as error:
        if name == "cifar10":
            raise
        print(f"CIFAR-10 is not available, using digits instead: {error}", file=sys.stderr)
        return _digits()


def cache_dir() -> Path:
    """Returns the cache folder for downloads (respects `XDG_CACHE_HOME`); it may not exist yet."""
    return platformdirs.user_cache_path("jaxnorm", appauthor=False)


def _digits() -> Dataset:
    """Returns scikit-learn's 1,797 digits, 8x8 in grey: 1,437 for training and 360 for testing.

    The split is deterministic: sorted by label, every fifth image is a test image, so each class
    has the same share in both parts, to within one image. Both parts keep the original order.
    """
    from sklearn.datasets import load_digits  # slow to import, and not needed for CIFAR-10

    pixels, classes = load_digits(return_X_y=True)  # float 0 to 16, (1797, 64)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = classes.astype(np.int32)
    test = np.zeros(len(labels), bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    names = tuple("0123456789")
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test], names)


def _cifar10(folder: Path, records: int, remedy: str) -> Dataset:
    """Reads the six .bin files of `folder`, each with `records` images.

    Raises:
        DataError: If a file is missing, has the wrong size or a wrong label. The message ends with `remedy`.
    """
    train = np.concatenate([_read(folder / name, records, remedy) for name in TRAIN_FILES])
    test = _read(folder / TEST_FILE, records, remedy)
    return Dataset("cifar10", *_split(train), *_split(test), CLASSES)


def _read(path: Path, records: int, remedy: str) -> Bytes:
    """Returns one .bin file as uint8, shape (records, 3073); see `_cifar10` for the errors."""
    expected = records * RECORD_BYTES
    try:
        size = path.stat().st_size  # before reading: a wrong file may be huge
        if size != expected:
            raise DataError(f"{path} must have {expected:,} bytes; it has {size:,}; {remedy}")
        rows = np.fromfile(path, np.uint8).reshape(records, RECORD_BYTES)
    except OSError as error:
        raise DataError(f"{path} must be a readable file; {error.strerror}; {remedy}") from error
    worst = int(rows[:, 0].argmax())
    if rows[worst, 0] >= len(CLASSES):
        found = f"record {worst} has label {rows[worst, 0]}"
        raise DataError(f"{path} must contain labels from 0 to 9; {found}; {remedy}")
    return rows


def _split(rows: Bytes) -> tuple[Bytes, Labels]:
    """Returns the images (N, 32, 32, 3) and the labels (N,) of records (N, 3073)."""
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0].astype(np.int32)


def _fetch(archive: Archive) -> Path:
    """Returns the cached CIFAR-10 folder; downloads and unpacks `archive` first if it is not there.

    The work happens in a temporary folder that is always removed, and the finished folder is moved
    into place in one step. So no process reads a partial folder, and concurrent downloads are safe.

    Raises:
        DataError: If the download fails, has the wrong contents, or cannot be stored.
    """
    cache = cache_dir()
    target = cache / FOLDER
    try:
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="cifar-10-", dir=cache) as temporary:
                packed = Path(temporary, "archive.tar.gz")
                _download(archive, packed)
                _unpack(archive, packed, Path(temporary))
                _move(Path(temporary, FOLDER), target)
    except OSError as error:
        need = f"{cache} must be a writable folder with 360 MB free"
        raise DataError(f"{need}; {error}; fix this, or {BY_HAND}") from error
    return target


def _download(archive: Archive, path: Path) -> None:
    """Writes the archive to `path`, showing a progress bar, and checks its size and SHA-256.

    Raises:
        DataError: If the download fails, or the size or the SHA-256 is wrong.
        OSError: If `path` cannot be written.
    """
    size, digest = 0, hashlib.sha256()
    console = Console(stderr=True)
    columns = ("CIFAR-10", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with path.open("wb") as file, bar:
        task = bar.add_task("download", total=archive.size)
        for chunk in _chunks(archive.url):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            bar.update(task, completed=size)
            if size > archive.size:
                break  # already wrong: an endless response must not fill the disk
    again = f"try again later, or {BY_HAND}"
    if size != archive.size:
        need = f"{archive.url} must have {archive.size:,} bytes"
        raise DataError(f"{need}; got {size:,}; {again}")
    if digest.hexdigest() != archive.sha256:
        need = f"{archive.url} must have the SHA-256 {archive.sha256}"
        raise DataError(f"{need}; got {digest.hexdigest()}; {again}")


def _chunks(url: str) -> Iterator[bytes]:
    """Yields the contents of `url` in chunks; raises `DataError` if the network fails."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            while chunk := response.read(CHUNK_BYTES):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # closes the connection
        need = f"{url} must be reachable"
        raise DataError(f"{need}; {error}; check the network, or {BY_HAND}") from error


def _unpack(archive: Archive, packed: Path, folder: Path) -> None:
    """Unpacks the file `packed` into `folder`.

    Raises:
        DataError: If it is not an archive, or contains anything but the files of CIFAR-10.
        OSError: If `folder` cannot be written.
    """
    need = f"{archive.url} must be a tar.gz archive of only the CIFAR-10 files"
    try:
        with tarfile.open(packed, "r:gz") as tar:
            for member in tar:
                if member.name not in MEMBERS:
                    raise DataError(f"{need}; it contains {member.name!r}; do not use this archive")
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{need}; {error}; do not use this archive") from error


def _move(source: Path, target: Path) -> None:
    """Moves a finished folder into place, unless another process has already done so."""
    try:
        os.replace(source, target)
    except OSError:
        if not target.is_dir():
            raise
