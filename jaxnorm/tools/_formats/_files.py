"""Files of arrays, read without executing anything that is in them."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

# What pickles are called.
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
# https://huggingface.co/docs/safetensors: the types of safetensors, in the names of NumPy and ml_dtypes.
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
    """The arrays of a file, by name.

    Raises:
        ValueError: it is a pickle, of another kind, or damaged.
    """
    if path.suffix in _PICKLES:
        raise ValueError(
            f"a file must be .safetensors or .npz; got {path.name}, a pickle, which can execute anything "
            f"when it is read. If you trust it, pass torch.load(path, weights_only=True), or save it once "
            f"with safetensors.torch.save_file."
        )
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    raise ValueError(
        f"a file must be .safetensors or .npz, of arrays under PyTorch's names; got {path.name}. Read it "
        f"yourself, and pass what is in it."
    )


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    """The length of the header in 8 bytes, the header in JSON, and the arrays one after another."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        return {name: _tensor(raw[start:], **entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path.name} must be a whole file of safetensors; got {len(raw)} bytes that are not "
            f"({error}). Download or save it again."
        ) from error


def _tensor(data: bytes, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> np.ndarray:
    begin, end = data_offsets
    kind = jnp.dtype(_TYPES[dtype])
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError("an array of another size than its shape")
    return np.frombuffer(data[begin:end], kind).reshape(shape)
