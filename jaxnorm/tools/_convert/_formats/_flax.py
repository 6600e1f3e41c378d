"""Reads and writes Linen variables and NNX models, whose layers have the same form."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..._model._keys import split_keys
from ._source import Entry, Path, Source, by_slot

_Variables = TypeVar("_Variables", bound=Mapping[str, Any])
_NNXModel = TypeVar("_NNXModel", bound=nnx.Module)
_Values = Mapping[Path, Mapping[str, np.ndarray]]
_Leaf = tuple[str, Path, str, Any]  # name, layer, role, value
_NUMBERS = (bool, int, float, complex)  # what a variable may hold instead of an array


def read_linen(variables: Mapping[str, Any]) -> Source:
    """Reads the layers of all collections: ``params/bn/scale`` and ``batch_stats/bn/mean`` belong to one."""
    model = _model(_linen_leaves(variables))
    automatic = {path for path in model.layers if path and path[-1].startswith("ConvTranspose_")}
    return model._replace(transposed=frozenset(automatic))


def write_linen(variables: _Variables, values: _Values) -> _Variables:
    """Returns the same tree with these values."""
    new = by_name(read_linen(variables), values)
    leaves = [_placed(new[name], leaf) for name, _, _, leaf in _linen_leaves(variables)]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def read_nnx(model: nnx.Module) -> Source:
    """Reads the layers of a model; anything shared appears where it is found first."""
    transposed = {
        path_of(path)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.ConvTranspose) and not module.transpose_kernel
    }
    leaves = _nnx_leaves(model)
    raw = ((name, path, role, variable.get_raw_value()) for name, path, role, variable in leaves)
    convs = ((path_of(path), conv) for path, conv in nnx.iter_modules(model))
    uneven = {path: pads for path, conv in convs if (pads := _even_padding(conv)) is not None}
    return _model(raw)._replace(transposed=frozenset(transposed), uneven=uneven)


def _even_padding(conv: nnx.Module) -> str | None:
    """PyTorch's padding for a strided convolution that pads more after than before; None for others."""
    if not isinstance(conv, nnx.Conv) or conv.padding != "SAME":
        return None
    sizes = np.broadcast_to(conv.kernel_size, np.shape(conv.kernel_size) or (1,))
    strides, dilation = (
        np.broadcast_to(given or 1, sizes.shape) for given in (conv.strides, conv.kernel_dilation)
    )
    window = (sizes - 1) * dilation + 1
    if not np.any((strides > 1) & (window > strides) & ((window - strides) % 2 == 1)):
        return None
    return repr(tuple((int(n // 2),) * 2 for n in window))


def write_nnx(model: _NNXModel, values: _Values) -> _NNXModel:
    """Returns a copy of the model with these values. Random streams and options stay the same."""
    copy, new = nnx.clone(model), by_name(read_nnx(model), values)
    for name, _, _, variable in _nnx_leaves(copy):
        variable.set_raw_value(_placed(new[name], variable.get_raw_value()))
    return copy


def by_name(model: Source, values: _Values) -> dict[str, np.ndarray]:
    """The values by the names of their entries."""
    return {
        entry.name: values[path][slot]
        for path, layer in model.layers.items()
        for slot, entry in layer.items()
    }


def path_of(keys: Sequence[Any]) -> Path:
    """The path as names, without the attribute in which a wrapper holds its layer."""
    return tuple(str(key) for key in keys if key != "layer_instance")


def _model(leaves: Iterator[_Leaf]) -> Source:
    layers: dict[Path, dict[str, Entry]] = {}
    for name, path, role, leaf in leaves:
        roles = layers.setdefault(path, {})
        roles[name if role in roles else role] = Entry(
            name, role, leaf
        )  # collections may share a name
    return Source({path: by_slot(roles) for path, roles in layers.items()}, is_torch=False)


def _linen_leaves(variables: Mapping[str, Any]) -> Iterator[_Leaf]:
    """Yields each leaf, in the order of jax.tree."""
    found = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        if isinstance(keys[-1], jax.tree_util.GetAttrKey):
            keys = keys[:-1]  # the box of a partitioned parameter
        names = [str(getattr(k, "key", getattr(k, "idx", k))) for k in keys]
        found.append((names, jnp.asarray(leaf) if isinstance(leaf, _NUMBERS) else leaf))
    layers = {tuple(names[1:-1]) for names, _ in found}
    for names, leaf in found:
        _, *path, last = names
        *inside, role = last.split("/")
        if inside:  # of a wrapper, named by the path of its weight
            role = f"{inside.pop()}/{role}"
            # The wrapped layer is in the wrapper or next to it, or was created further up and passed down.
            ends = [(*path[:end], *inside) for end in range(len(path), -1, -1)]
            path = next((end for end in ends if end in layers), path)
        yield "/".join(names), path_of(path), role, leaf


def _nnx_leaves(model: nnx.Module) -> Iterator[_Leaf]:
    for keys, variable in nnx.to_flat_state(nnx.state(model, _is_stored)):
        *path, role = split_keys(keys)
        if isinstance(keys[-1], tuple):  # of a wrapper, by the path of its parameter
            role = f"{path.pop()}/{role}"
        yield "/".join(map(str, keys)), path_of(path), str(role), variable


def _is_stored(path: Any, variable: Any) -> bool:
    """Whether this is a variable other than those of random streams, which are the model's own."""
    return isinstance(variable, nnx.Variable) and not isinstance(variable, nnx.RngState)


def _placed(value: np.ndarray, like: Any) -> Any:
    """A copy of ``value`` with the dtype and the devices of ``like``."""
    copied = np.array(value, like.dtype, order="C")
    if isinstance(like, np.ndarray):
        return copied
    if isinstance(like, jax.Array) and not like.committed:
        return jnp.asarray(copied)
    return jax.device_put(copied, getattr(like, "sharding", None))
