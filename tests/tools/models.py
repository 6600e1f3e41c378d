"""Small models of both module systems, to be recalibrated, frozen, swapped and examined."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from examples.models import CNN, ResNet20
from jaxnorm import linen as jnl, nnx as jnx

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(1, 2, (16, 8, 8, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(1, 2, (16, 5)).astype(np.float32)


class MLP(nn.Module):
    """Dense, norm, relu, norm, dense."""

    norm: Any = jnl.BatchNorm
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Any, train: bool, mask: Any = None) -> Any:
        """Returns two numbers for each row."""
        x = nn.Dense(4)(x)
        x = nn.relu(self.norm(name="first")(x, use_running_average=not train, mask=mask))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = self.norm(name="second")(x, use_running_average=not train, mask=mask)
        return nn.Dense(2)(x)


class Reused(nn.Module):
    """A small residual network from ``setup`` whose blocks share a convolution and its norm."""

    norm: Any = jnl.BatchNorm

    def setup(self) -> None:
        """Creates three layers."""
        self.stem = nn.Conv(4, (3, 3))
        self.conv = nn.Conv(4, (3, 3))
        self.bn = self.norm()

    def __call__(self, x: Any, train: bool) -> Any:
        """Returns means over the image."""
        x = self.stem(x)
        for _ in range(2):
            x = x + nn.relu(self.bn(self.conv(x), use_running_average=not train))
        return x.mean((1, 2))


class Layer(nn.Module):
    """A dense layer, a norm and a relu."""

    norm: Any = jnl.BatchNorm

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Has the form that `nn.scan` requires."""
        return nn.relu(self.norm(name="bn")(nn.Dense(5)(x), use_running_average=not train)), None


class Stacked(nn.Module):
    """These layers in a scan, rematerialized."""

    norm: Any = jnl.BatchNorm
    length: int = 2

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Returns five numbers for each row."""
        scan = nn.scan(
            nn.remat(Layer, static_argnums=(2,), prevent_cse=False),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=self.length,
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        )
        return scan(self.norm)(x, train)[0]


class NnxMLP(nnx.Module):
    """`MLP` in NNX; with ``shared`` the second norm is the first."""

    def __init__(self, norm: Any, *, dropout: float = 0.0, shared: bool = False) -> None:
        rngs = nnx.Rngs(0, dropout=1)
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.first: Any = norm(4, rngs=rngs)
        self.second: Any = self.first if shared else norm(4, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any, train: bool, mask: Any = None) -> Any:
        """Returns two numbers for each row."""
        x = self.dense(x)
        x = nnx.relu(self.first(x, use_running_average=not train, mask=mask))
        x = self.dropout(x, deterministic=not train)
        return self.last(self.second(x, use_running_average=not train, mask=mask))


def run(model: Any, x: Any, train: bool) -> Any:
    """Runs ``model`` on a batch."""
    if isinstance(model, nn.BatchNorm | jnl.BatchNorm | nnx.BatchNorm | jnx.BatchNorm):
        return model(x, use_running_average=not train)
    return model(x, train)


class Subject(NamedTuple):
    """A model, its variables if it is a Linen module, and its input."""

    model: Any
    variables: Any
    x: np.ndarray

    def run(self, model: Any, x: Any, train: bool) -> Any:
        """Runs ``model`` on a batch."""
        return run(model, x, train)

    @property
    def train(self) -> Callable[[Any, Any], Any]:
        """The function with which tools run the model in training."""
        return partial(self.run, train=True)

    @property
    def evaluate(self) -> Callable[[Any, Any], Any]:
        """The function with which tools run the model in evaluation."""
        return partial(self.run, train=False)

    def like(self, changed: Any, variables: Any = None) -> "Subject":
        """The subject with the result of a tool: variables of a Linen module, or a model."""
        if isinstance(changed, nn.Module):
            return self._replace(model=changed, variables=variables or self.variables)
        if isinstance(changed, nnx.Module):
            return self._replace(model=changed)
        return self._replace(variables=changed)

    def output(self, x: Any = None, *, train: bool = False) -> Any:
        """The output of the model, which is not changed."""
        return self.step(x, train=train)[0]

    def step(self, x: Any = None, *, train: bool = True) -> tuple[Any, "Subject"]:
        """The output, and the subject after the call."""
        x = self.x if x is None else x
        if isinstance(self.model, nnx.Module):
            model = nnx.clone(self.model)
            return self.run(model, x, train), self.like(model)
        y, updated = _applied(self.model)(self.variables, x, train)
        return y, self.like({**self.variables, **updated})

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, by path."""
        if isinstance(self.model, nnx.Module):
            state = nnx.state(self.model, nnx.Not(nnx.RngState))
            flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(state)}
        else:
            flat = flatten_dict(dict(self.variables))
        return {"/".join(map(str, path)): np.asarray(leaf) for path, leaf in flat.items()}

    @property
    def stats(self) -> dict[str, np.ndarray]:
        """The running statistics, by path."""
        names = ("mean", "var", "count")
        return {path: a for path, a in self.arrays.items() if path.split("/")[-1] in names}


def linen(model: Any, x: np.ndarray) -> Subject:
    """A Linen model with scale and bias other than the initial ones."""
    return Subject(model, _initialized(model, x.shape, x.dtype), x)


def nnx_model(model: Any, x: np.ndarray = ROWS) -> Subject:
    """The same for an NNX model."""
    nnx.update(model, jax.tree.map(_moved, nnx.state(model, nnx.Param)))
    return Subject(model, None, x)


# Compiled once for all tests: Linen models are equal if their fields are.


@cache
def _initialized(model: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    init = jax.jit(nn.init(run, model), static_argnums=2)
    return jax.tree.map(_moved, init(KEY, jnp.zeros(shape, dtype), True))


@cache
def _applied(model: Any) -> Any:
    return jax.jit(nn.apply(run, model, mutable=["batch_stats"]), static_argnums=2)


def _moved(leaf: Any) -> Any:
    """Changes a parameter so that it is not all ones or zeros."""
    if leaf.ndim != 1:
        return leaf
    return (leaf.astype(jnp.float32) + jnp.linspace(0.0, 0.5, leaf.size)).astype(leaf.dtype)


def small_cnn(norm: Any = jnl.BatchNorm) -> CNN:
    """The CIFAR CNN with few channels."""
    return CNN(widths=(4, 6), depth=1, stem_width=4, norm=norm)


# Each creates a model with batch norms, from Flax or from us.
SUBJECTS: dict[str, Callable[[], Subject]] = {
    "CNN": lambda: linen(small_cnn(), IMAGES),
    "reused": lambda: linen(Reused(), IMAGES),
    "MLP": lambda: linen(MLP(), ROWS),
    "Flax's reused": lambda: linen(Reused(nn.BatchNorm), IMAGES),
    "Flax's itself": lambda: linen(nn.BatchNorm(), ROWS),
    "itself": lambda: linen(jnl.BatchNorm(), ROWS),
    "NNX": lambda: nnx_model(NnxMLP(jnx.BatchNorm)),
    "NNX, shared": lambda: nnx_model(NnxMLP(jnx.BatchNorm, shared=True)),
    "NNX, itself": lambda: nnx_model(jnx.BatchNorm(5, rngs=nnx.Rngs(0))),
    "NNX, Flax's": lambda: nnx_model(NnxMLP(nnx.BatchNorm)),
    "NNX, Flax's itself": lambda: nnx_model(nnx.BatchNorm(5, rngs=nnx.Rngs(0))),
}


def resnet20() -> Subject:
    """ResNet-20, with nineteen norms."""
    return linen(ResNet20(), IMAGES)


def sharded(x: Any) -> Any:
    """Shards examples over all devices."""
    mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))


def assert_same(a: Subject, b: Subject) -> None:
    """Checks that two subjects agree bit for bit."""
    assert a.arrays.keys() == b.arrays.keys()
    for path, array in a.arrays.items():
        assert array.dtype == b.arrays[path].dtype, path
        np.testing.assert_array_equal(array, b.arrays[path], err_msg=path)
