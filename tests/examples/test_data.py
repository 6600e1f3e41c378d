"""Loading the example data sets, from a local server and small archives of random images."""

import errno
import hashlib
import io
import os
import socket
import struct
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from examples import data
from examples.data import FOLDER, Archive, DataError, load

RECORDS = 3
FILES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
REAL = os.environ.get(data.DATA_VARIABLE)
Answer = Callable[[BaseHTTPRequestHandler], object]
Serve = Callable[[Answer], str]


def make_files() -> dict[str, bytes]:
    """Return the six .bin files with random pixels; record i of each has label i."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (len(FILES), RECORDS, 3073), dtype=np.uint8)
    rows[:, :, 0] = np.arange(RECORDS)
    return {name: rows[i].tobytes() for i, name in enumerate(FILES)}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write `files` in the layout that `data_dir` expects; return that folder."""
    (folder / FOLDER).mkdir(parents=True)
    for name, content in files.items():
        (folder / FOLDER / name).write_bytes(content)
    return folder


def make_archive(members: dict[str, bytes]) -> bytes:
    """Return a tar.gz with `members`, a mapping of full names to contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


PACKED = make_archive({f"{FOLDER}/{name}": content for name, content in make_files().items()})


def send(body: bytes, declared: int | None = None) -> Answer:
    """Return an answer with `body`, which may declare another length."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body) if declared is None else declared))
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server with one answer to all requests and returns its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Isolate each test from the user's cache, data folder and proxy."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(data, "cache_dir", lambda: folder)
    monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return folder


def describe(url: str, packed: bytes = PACKED) -> Archive:
    """Return the description of `packed` at `url`."""
    return Archive(url, len(packed), hashlib.sha256(packed).hexdigest(), RECORDS)


def closed_port() -> str:
    """Return a URL where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/cifar-10-binary.tar.gz"


def assert_fails(archive: Archive, cache: Path, *words: str) -> None:
    """Check that the download fails with `words` in one line, and leaves nothing behind."""
    with pytest.raises(DataError) as caught:
        load("cifar10", archive=archive)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert not cache.is_dir() or list(cache.iterdir()) == []


# Results


def test_download_gives_the_images_that_were_packed(serve: Serve) -> None:
    """Pixels, labels, order, shapes and dtypes match the packed files."""
    loaded = load("cifar10", archive=describe(serve(send(PACKED))))
    files = make_files()
    raw = np.frombuffer(b"".join(files[name] for name in FILES[:5]), np.uint8).reshape(-1, 3073)
    for record, image in zip(raw, loaded.train_images, strict=True):
        for channel in range(3):
            plane = record[1 + 1024 * channel : 1 + 1024 * (channel + 1)]
            assert (image[:, :, channel] == plane.reshape(32, 32)).all()
    assert loaded.name == "cifar10"
    assert loaded.train_images.dtype == loaded.test_images.dtype == np.uint8
    assert loaded.train_images.flags.c_contiguous
    assert loaded.train_labels.dtype == loaded.test_labels.dtype == np.int32
    assert loaded.train_labels.tolist() == [0, 1, 2] * 5
    assert loaded.test_labels.tolist() == [0, 1, 2]
    assert loaded.test_images.shape == (RECORDS, 32, 32, 3)
    last = np.frombuffer(files["test_batch.bin"], np.uint8)[-1]
    assert loaded.test_images[-1, -1, -1, -1] == last
    assert loaded.classes[0] == "airplane" and loaded.classes[9] == "truck"


def test_second_load_uses_the_cache(serve: Serve, cache: Path) -> None:
    """The download is the only entry in the cache, and is not requested again."""
    load("cifar10", archive=describe(serve(send(PACKED))))
    assert [path.name for path in cache.iterdir()] == [FOLDER]
    load("cifar10", archive=describe(closed_port()))


def test_default_archive_is_the_official_one() -> None:
    """The expected size, checksum and record count are the published ones."""
    assert data.CIFAR10.size == 170_052_171
    assert data.CIFAR10.sha256.startswith("c4a38c50a1bc5f3a")
    assert data.CIFAR10.records == 10_000


def test_digits_split_is_fixed_and_stratified() -> None:
    """Digits come as uint8 (N, 8, 8, 1), 1437 + 360, with a fifth of each class in the test set."""
    first, second = load("digits"), load("digits")
    assert first.name == "digits" and first.classes == tuple("0123456789")
    assert first.train_images.shape == (1437, 8, 8, 1)
    assert first.test_images.shape == (360, 8, 8, 1)
    assert first.train_images.dtype == np.uint8 and first.train_images.max() == 255
    assert first.train_labels.dtype == np.int32
    assert (first.test_images == second.test_images).all()
    test, train = np.bincount(first.test_labels), np.bincount(first.train_labels)
    assert (np.abs(test - (test + train) / 5) <= 1).all()


def test_digits_are_those_of_scikit_learn() -> None:
    """The split does not lose, duplicate or relabel an image."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    loaded = load("digits")
    images = np.concatenate([loaded.train_images, loaded.test_images]).reshape(-1, 64)
    ours = np.column_stack([np.concatenate([loaded.train_labels, loaded.test_labels]), images])
    theirs = np.column_stack([labels, np.rint(pixels * 255 / 16)]).astype(int)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


@pytest.mark.skipif(REAL is None, reason=f"needs CIFAR-10: set {data.DATA_VARIABLE}")
def test_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files give 50,000 and 10,000 images, with the same number in each class."""
    monkeypatch.setenv(data.DATA_VARIABLE, REAL or "")
    loaded = load()
    assert loaded.train_images.shape == (50_000, 32, 32, 3)
    assert np.bincount(loaded.train_labels).tolist() == [5_000] * 10
    assert np.bincount(loaded.test_labels).tolist() == [1_000] * 10
    assert loaded.classes[loaded.train_labels[0]] == "frog"


# Sources


def test_environment_variable_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAXNORM_DATA sets the folder, and the network is not used."""
    folder = write_files(tmp_path / "given", make_files())
    monkeypatch.setenv("JAXNORM_DATA", str(folder))
    assert load(archive=describe(closed_port())).name == "cifar10"


def test_data_dir_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If both are given, the files come from data_dir."""
    files = make_files()
    mine = write_files(tmp_path / "mine", files)
    zeros = write_files(tmp_path / "zeros", {name: bytes(len(files[name])) for name in files})
    monkeypatch.setenv("JAXNORM_DATA", str(zeros))
    assert load("cifar10", mine, archive=describe("unused")).train_images.any()
    assert not load("cifar10", archive=describe("unused")).train_images.any()


@pytest.mark.skipif(sys.platform != "linux", reason="the XDG folders are a Linux convention")
def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_CACHE_HOME moves the cache."""
    monkeypatch.undo()  # restores the real cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.cache_dir() == tmp_path / "jaxnorm"


def test_auto_falls_back_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Without CIFAR-10, auto prints one line with the failure, the fallback and the remedy."""
    url = closed_port()
    assert load(archive=describe(url)).name == "digits"
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    assert url in err and "digits" in err and "set JAXNORM_DATA" in err


def test_auto_prefers_cifar10(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """With a network, auto downloads CIFAR-10 and prints nothing."""
    assert load(archive=describe(serve(send(PACKED)))).name == "cifar10"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("by", ["data_dir", "variable"])
def test_auto_does_not_replace_what_was_asked_for(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken folder that the user named is an error, not a reason to fall back to digits."""
    if by == "variable":
        monkeypatch.setenv("JAXNORM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"data_batch_1\.bin .*unpack cifar-10-binary\.tar\.gz in"):
        load(data_dir=tmp_path if by == "data_dir" else None)


def test_unknown_name() -> None:
    """A misspelled name raises an error that lists the right ones."""
    with pytest.raises(DataError, match="auto, cifar10 or digits; got 'mnist'"):
        load("mnist")  # pyright: ignore[reportArgumentType]


# Broken files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size_names_the_file(name: str, change: int, tmp_path: Path) -> None:
    """A file that is one byte too short or too long is refused, with both sizes and its name."""
    files = make_files()
    files[name] = (files[name] + b"\0")[: len(files[name]) + change]
    folder = write_files(tmp_path / "given", files)
    expected = rf"{name} must have 9,219 bytes; it has {9219 + change:,};"
    with pytest.raises(DataError, match=expected):
        load("cifar10", folder, archive=describe("unused"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A folder with five of the six files is refused, and the sixth named."""
    files = make_files()
    del files["data_batch_4.bin"]
    folder = write_files(tmp_path / "given", files)
    with pytest.raises(DataError, match=r"data_batch_4\.bin must be a readable file; No such file"):
        load("cifar10", folder, archive=describe("unused"))


def test_label_out_of_range(tmp_path: Path) -> None:
    """Label 9 is accepted, label 10 is refused with its file and record."""
    files = make_files()
    images = files["test_batch.bin"]
    files["test_batch.bin"] = b"\x09" + images[1:]
    nine = write_files(tmp_path / "nine", files)
    assert load("cifar10", nine, archive=describe("unused")).test_labels[0] == 9
    files["test_batch.bin"] = images[:3073] + b"\x0a" + images[3074:]
    ten = write_files(tmp_path / "ten", files)
    with pytest.raises(DataError, match=r"test_batch\.bin .* 0 to 9; record 1 has label 10"):
        load("cifar10", ten, archive=describe("unused"))


def test_broken_cache_says_to_delete_it(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error for a damaged cache names the folder to delete; auto prints the same and continues."""
    files = make_files()
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:100]  # half-written
    write_files(cache, files)
    with pytest.raises(DataError, match=rf"data_batch_2\.bin .*delete the folder .*{FOLDER}"):
        load("cifar10", archive=describe("unused"))
    assert load("auto", archive=describe("unused")).name == "digits"
    assert "delete the folder" in capsys.readouterr().err


# Broken downloads


def test_truncated_download(serve: Serve, cache: Path) -> None:
    """A body that ends early is refused by its size, whatever length the server declared."""
    for declared in (len(PACKED) // 2, len(PACKED)):
        url = serve(send(PACKED[: len(PACKED) // 2], declared))
        assert_fails(describe(url), cache, url, f"{len(PACKED):,}", "got", "JAXNORM_DATA")


def test_oversized_download_stops(serve: Serve, cache: Path) -> None:
    """An endless body is cut off at the first chunk beyond the expected size."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(100):
                request.wfile.write(bytes(data.CHUNK_BYTES))
        except OSError:
            pass  # the client has disconnected, as it must

    words = f"must have {len(PACKED):,} bytes", f"; got {data.CHUNK_BYTES:,};"
    assert_fails(describe(serve(answer)), cache, *words)


def test_wrong_bytes(serve: Serve, cache: Path) -> None:
    """One flipped bit is refused by the checksum."""
    flipped = PACKED[:-1] + bytes([PACKED[-1] ^ 1])
    url = serve(send(flipped))
    assert_fails(describe(url), cache, url, "SHA-256", hashlib.sha256(flipped).hexdigest())


def test_http_error(serve: Serve, cache: Path) -> None:
    """A 404 is reported with the URL and the status."""
    url = serve(lambda request: request.send_error(404))
    assert_fails(describe(url), cache, url, "404", "check the network")


def test_refused_connection(cache: Path) -> None:
    """A closed port is reported with the URL."""
    url = closed_port()
    assert_fails(describe(url), cache, url, "refused", "check the network")


@pytest.mark.skipif(sys.platform == "win32", reason="forces the reset the POSIX way")
def test_dropped_connection(serve: Serve, cache: Path) -> None:
    """A connection reset in the middle is reported with the URL, and the partial file is removed."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        send(PACKED[:1000], len(PACKED))(request)
        time.sleep(0.05)  # lets the first bytes arrive: a reset discards data in transit
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(request.connection.detach())

    url = serve(answer)
    assert_fails(describe(url), cache, url, "reset", "check the network")


def test_silent_server(serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers times out."""
    done = threading.Event()
    monkeypatch.setattr(data, "TIMEOUT_SECONDS", 0.1)
    url = serve(lambda request: done.wait(5))
    assert_fails(describe(url), cache, url, "timed out")
    done.set()


@pytest.mark.parametrize(
    "name", ["../evil", f"{FOLDER}/../../evil", "evil", f"{FOLDER}/sub/test_batch.bin"]
)
def test_strange_member(name: str, serve: Serve, cache: Path, tmp_path: Path) -> None:
    """A member outside the folder, or not part of CIFAR-10, is refused and not written."""
    packed = make_archive({name: b"evil"})
    assert_fails(describe(serve(send(packed)), packed), cache, repr(name), "do not use")
    assert not list(tmp_path.rglob("evil"))


def test_link_out_of_the_folder(serve: Serve, cache: Path, tmp_path: Path) -> None:
    """A member with a valid name that links elsewhere is refused."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo(f"{FOLDER}/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../secret"
        tar.addfile(link)
    packed = buffer.getvalue()
    assert_fails(describe(serve(send(packed)), packed), cache, "do not use")


def test_not_an_archive(serve: Serve, cache: Path) -> None:
    """Bytes that are not a tar.gz, or only half of one, are refused with the URL."""
    for packed in (b"hello", PACKED[: len(PACKED) // 2]):
        url = serve(send(packed))
        assert_fails(describe(url, packed), cache, url, "must be a tar.gz archive")


# The cache


def test_unwritable_cache(cache: Path) -> None:
    """A file in place of the cache folder is reported with its path."""
    cache.write_bytes(b"")
    assert_fails(describe(closed_port()), cache, str(cache), "writable", "JAXNORM_DATA")
    assert cache.is_file()


def test_full_disk(serve: Serve, cache: Path) -> None:
    """A write that the system refuses midway is reported with the cache folder."""
    resource = pytest.importorskip("resource")
    url = serve(send(PACKED))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(PACKED) // 2, hard))
    try:
        assert_fails(describe(url), cache, str(cache), os.strerror(errno.EFBIG), "360 MB free")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_interrupt_leaves_nothing(
    serve: Serve, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between download and unpacking propagates, and the temporary folder is removed."""

    def interrupt(archive: Archive, packed: Path, folder: Path) -> None:
        assert packed.stat().st_size == len(PACKED)
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(archive=describe(serve(send(PACKED))))
    assert list(cache.iterdir()) == []


def test_two_downloads_at_once(serve: Serve, cache: Path) -> None:
    """Two simultaneous downloads both load the images, and leave one folder."""
    both = threading.Barrier(2)

    def answer(request: BaseHTTPRequestHandler) -> None:
        both.wait(10)  # no request is served before both have arrived
        send(PACKED)(request)

    archive = describe(serve(answer))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load("cifar10", archive=archive), range(2))
    assert (first.train_images == second.train_images).all()
    assert [path.name for path in cache.iterdir()] == [FOLDER]
