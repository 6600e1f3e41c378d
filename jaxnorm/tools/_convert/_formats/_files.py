"""Reads files of arrays without executing anything in them."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar

import jax.numpy as jnp
import numpy as np

_Value = TypeVar("_Value")
# File suffixes of pickles.
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
# The dtypes of safetensors (https://huggingface.co/docs/safetensors), as named in NumPy and ml_dtypes.
_TYPES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    **{
        f"{kind}{n}": f"{name}{n}"
        for kind, name in (("U", "uint"), ("I", "int"))
        for n in (8, 16, 32, 64)
    },
    **{f"F{n}": f"float{n}" for n in (16, 32, 64)},
}


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file, by name.

    Raises:
        ValueError: If the file is a pickle, is of another unsupported type, or is damaged.
    """
    if path.suffix in _PICKLES:
        raise ValueError(
            f"a file must be .safetensors or .npz; got {path.name}, a pickle, which can execute arbitrary "
            f"code when it is loaded. If you trust it, pass torch.load(path, weights_only=True), or save it "
            f"once with safetensors.torch.save_file."
        )
    readers = {".safetensors": _safetensors, ".npz": _npz}
    if path.suffix not in readers:
        raise ValueError(
            f"a file must be .safetensors or .npz, with arrays under PyTorch's names; got {path.name}. Load "
            f"it yourself, and pass its contents."
        )
    with path.open("rb") as file:
        try:
            return readers[path.suffix](file)
        except Exception as error:  # NumPy, zipfile, zlib and json raise a dozen kinds
            raise ValueError(
                f"{path.name} must be a complete {path.suffix[1:]} file; got {path.stat().st_size} bytes "
                f"that cannot be read ({error}). Download or save it again."
            ) from error


def _npz(file: BinaryIO) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return _without_duplicates((name, arrays[name]) for name in arrays.files)


def _safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads 8 bytes with the length of the header, the header in JSON, and the arrays one after another."""
    raw = memoryview(file.read())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(bytes(raw[8:start]), object_pairs_hook=_without_duplicates)
    header.pop("__metadata__", None)
    data, end = raw[start:], 0
    arrays = {name: _tensor(data, **entry) for name, entry in header.items()}
    for begin, its_end in sorted(entry["data_offsets"] for entry in header.values()):
        if begin != end:
            raise ValueError(f"an array starts at byte {begin}, but the one before ends at {end}")
        end = its_end
    if end != len(data):
        raise ValueError(f"there are {len(data)} bytes of data, but the arrays end at {end}")
    return arrays


def _tensor(
    data: memoryview, dtype: str, shape: list[int], data_offsets: tuple[int, int]
) -> np.ndarray:
    begin, end = data_offsets
    kind = jnp.dtype(_TYPES[dtype])
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError("the size of an array does not match its shape")
    return np.frombuffer(data[begin:end], kind).reshape(shape)


def _without_duplicates(pairs: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    found: dict[str, _Value] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} occurs twice")
        found[name] = value
    return found
