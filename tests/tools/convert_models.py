"""Small models with every kind of layer in Linen and NNX, and PyTorch's layouts in NumPy."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxnorm import linen as jnl, nnx as jnx

Tree = Any
StateDict = dict[str, np.ndarray]


class Everything(nn.Module):
    """Each layer with arrays that a conversion supports, with the names of a state_dict."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Takes images of shape (N, 8, 8, 3)."""
        x = nn.Conv(4, (3, 3), name="stem_0")(x)
        x = jnl.BatchNorm(not train, momentum=None, name="stem_1")(x)
        x = nn.Conv(4, (3, 1), feature_group_count=2, use_bias=False, name="grouped")(x)
        x = nn.ConvTranspose(4, (2, 3), (2, 2), name="up")(x)
        x = nn.ConvTranspose(6, (2, 2), transpose_kernel=True, name="turned")(x)
        x = jnl.GroupNorm(2, name="group")(x)
        x = jnl.InstanceNorm(track_running_stats=True, name="instance")(
            x, use_running_average=not train
        )
        x = x[:, :2, :3].reshape(x.shape[0], -1)
        x = nn.Dense(5, name="fc")(x)
        x = jnl.LayerNorm(use_bias=False, name="layer")(x)
        x = jnl.RMSNorm(name="rms")(x)
        x = jnl.WeightNorm(nn.Dense(5, name="wn"), scale_init=None)(x)
        x = jnl.SpectralNorm(nn.Dense(5, name="sn"))(x, update_stats=train)
        return x + nn.Embed(7, 5, name="embed")(jnp.arange(x.shape[0]) % 7)


class EverythingNNX(nnx.Module):
    """The same model in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates the layers, with random streams that belong to the model."""
        self.stem = nnx.List(
            [nnx.Conv(3, 4, (3, 3), rngs=rngs), jnx.BatchNorm(4, momentum=None, rngs=rngs)]
        )
        self.grouped = nnx.Conv(4, 4, (3, 1), feature_group_count=2, use_bias=False, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 4, (2, 3), (2, 2), rngs=rngs)
        self.turned = nnx.ConvTranspose(4, 6, (2, 2), transpose_kernel=True, rngs=rngs)
        self.group = jnx.GroupNorm(6, 2, rngs=rngs)
        self.instance = jnx.InstanceNorm(6, track_running_stats=True, rngs=rngs)
        self.fc = nnx.Linear(36, 5, rngs=rngs)
        self.layer = jnx.LayerNorm(5, use_bias=False, rngs=rngs)
        self.rms = jnx.RMSNorm(5, rngs=rngs)
        self.wn = jnx.WeightNorm(nnx.Linear(5, 5, rngs=rngs), scale_init=None, rngs=rngs)
        self.sn = jnx.SpectralNorm(nnx.Linear(5, 5, rngs=rngs), rngs=rngs)
        self.embed = nnx.Embed(7, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Takes images of shape (N, 8, 8, 3)."""
        x = self.turned(self.up(self.grouped(self.stem[1](self.stem[0](x)))))
        x = self.instance(self.group(x))
        x = self.fc(x[:, :2, :3].reshape(x.shape[0], -1))
        x = self.sn(self.wn(self.rms(self.layer(x))))
        return x + self.embed(jnp.arange(x.shape[0]) % 7)


TRANSPOSED = ("up",)
FLATTENED = {"fc": (6, 2, 3)}  # channels, height, width
IMAGES = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)


def shapes_of(model: nn.Module, x: Any = IMAGES) -> Tree:
    """The shapes that `init` would give."""
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)


def randomized(tree: Tree, seed: int = 0) -> Tree:
    """Positive random values for all floating leaves, and a single number for each count."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        if np.issubdtype(leaf.dtype, np.integer):
            return np.full(leaf.shape, 9, leaf.dtype)
        return rng.uniform(0.1, 1.5, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, tree)


def state_dict_of_everything(variables: Tree) -> StateDict:
    """PyTorch's ``state_dict`` for these variables of `Everything`, each array written by hand."""
    p, s = variables["params"], variables["batch_stats"]
    turn: Callable[[np.ndarray], np.ndarray] = lambda k: k[::-1, ::-1].transpose(2, 3, 0, 1)  # noqa: E731
    conv: Callable[[np.ndarray], np.ndarray] = lambda k: k.transpose(3, 2, 0, 1)  # noqa: E731
    w, u = p["sn"]["kernel"].T, s["SpectralNorm_0"]["sn/kernel/u"][0]
    v = w.T @ u
    return {
        "stem.0.weight": conv(p["stem_0"]["kernel"]),
        "stem.0.bias": p["stem_0"]["bias"],
        "stem.1.weight": p["stem_1"]["scale"],
        "stem.1.bias": p["stem_1"]["bias"],
        "stem.1.running_mean": s["stem_1"]["mean"],
        "stem.1.running_var": s["stem_1"]["var"],
        "stem.1.num_batches_tracked": np.asarray(9, np.int64),
        "grouped.weight": conv(p["grouped"]["kernel"]),
        "up.weight": turn(p["up"]["kernel"]),
        "up.bias": p["up"]["bias"],
        "turned.weight": conv(p["turned"]["kernel"]),
        "turned.bias": p["turned"]["bias"],
        "group.weight": p["group"]["scale"],
        "group.bias": p["group"]["bias"],
        "instance.weight": p["instance"]["scale"],
        "instance.bias": p["instance"]["bias"],
        "instance.running_mean": s["instance"]["mean"],
        "instance.running_var": s["instance"]["var"],
        "instance.num_batches_tracked": np.asarray(4, np.int64),
        "fc.weight": p["fc"]["kernel"].reshape(2, 3, 6, 5).transpose(3, 2, 0, 1).reshape(5, 36),
        "fc.bias": p["fc"]["bias"],
        "layer.weight": p["layer"]["scale"],
        "rms.weight": p["rms"]["scale"],
        "wn.bias": p["wn"]["bias"],
        "wn.parametrizations.weight.original0": p["WeightNorm_0"]["wn/kernel/scale"][:, None],
        "wn.parametrizations.weight.original1": p["wn"]["kernel"].T,
        "sn.bias": p["sn"]["bias"],
        "sn.parametrizations.weight.original": w,
        "sn.parametrizations.weight.0._u": u,
        "sn.parametrizations.weight.0._v": v / np.linalg.norm(v),
        "embed.weight": p["embed"]["embedding"],
    }


def assert_same(a: Tree, b: Tree) -> None:
    """Checks that two trees have the same structure, dtypes and bits."""

    def same(a: Any, b: Any) -> None:
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    jax.tree.map(same, a, b)
