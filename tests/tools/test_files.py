"""Damaged or malicious files of arrays raise a ValueError that names the file."""

import json
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxnorm.tools._convert._formats._files import read_file
from tests.tools.test_convert import write_safetensors


def sections(**arrays: Any) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    return header, data


@pytest.mark.parametrize("suffix", ["npz", "npz, compressed", "safetensors"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    """After truncation or a bit flip, a file that cannot be read is refused by name."""
    arrays = {"weight": np.arange(6, dtype=np.float32), "bias": np.ones(6, np.float32)}
    path = tmp_path / f"a.{suffix[:3] if suffix != 'safetensors' else suffix}"
    if suffix == "safetensors":
        header, data = sections(**arrays)
        write_safetensors(path, json.dumps(header).encode(), data)
    else:
        save: Any = np.savez_compressed if "compressed" in suffix else np.savez
        save(path, **arrays)
    whole, rng, messages = path.read_bytes(), np.random.default_rng(0), []
    cuts = [whole[:n] for n in range(0, len(whole), 11)]
    turned = []
    for i in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << int(rng.integers(8))
        turned.append(bytes(damaged))
    for damaged in cuts + turned:
        path.write_bytes(damaged)
        try:
            read_file(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) >= len(cuts)
    assert all(m.startswith(f"a{path.suffix} must be a complete ") for m in messages)


HEADER = sections(a=np.ones(4, np.float32), b=np.ones(4, np.float32))
MALICIOUS: dict[str, tuple[bytes, bytes]] = {
    "deep": (b"[" * 100_000, b""),
    "overlapping": (
        json.dumps({**HEADER[0], "b": HEADER[0]["a"]}).encode(),
        HEADER[1],
    ),
    "with a hole": (json.dumps({"b": HEADER[0]["b"]}).encode(), HEADER[1]),
    "with more": (json.dumps(HEADER[0]).encode(), HEADER[1] + b"more"),
    "of one name": (json.dumps(HEADER[0]).encode().replace(b'"b"', b'"a"'), HEADER[1]),
    "of a negative shape": (
        json.dumps(HEADER[0]).encode().replace(b'"shape": [4]', b'"shape": [-2, -2]'),
        HEADER[1],
    ),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious_safetensors(kind: str, tmp_path: Path) -> None:
    """A small file cannot expand to large arrays, and no name is read twice."""
    write_safetensors(tmp_path / "a.safetensors", *MALICIOUS[kind])
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        read_file(tmp_path / "a.safetensors")


def test_one_name_twice_in_an_npz(tmp_path: Path) -> None:
    """An .npz with a repeated name is refused; NumPy would read only one of the two."""
    np.savez(tmp_path / "a.npz", weight=np.ones(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("weight.npy", file.read("weight.npy"))
    with pytest.raises(ValueError, match="'weight' occurs twice"):
        read_file(tmp_path / "a.npz")


def test_a_file_is_held_once(tmp_path: Path) -> None:
    """Arrays from safetensors are views of the file's content, without further copies."""
    header, data = sections(**{f"a{i}": np.full(1000, i, np.float32) for i in range(100)})
    write_safetensors(tmp_path / "a.safetensors", json.dumps(header).encode(), data)
    tracemalloc.start()
    arrays = read_file(tmp_path / "a.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all((arrays[f"a{i}"] == i).all() for i in range(100))
    assert peak < 2 * len(data)
