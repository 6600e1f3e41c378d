"""The whole life of batch norm in one network: from PyTorch's weights to a deployed model, and back.

    python -m examples.lifecycle

A residual network with weights in PyTorch's format is converted and checked, examined on images from another
camera, recalibrated, fine-tuned with frozen norms and a new head, averaged, recalibrated again, folded,
exported for CPU, GPU and TPU (and to ONNX, if jax2onnx is installed), and converted back. All of it is done
in Linen and in NNX. The weights and the images are random; each line of the table compares two results that
should be equal.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax import export
from jax.extend.core import jaxpr_as_fun
from rich.console import Console
from rich.table import Table

from jaxnorm import linen as jnl, nnx as jnx, tools

StateDict: TypeAlias = dict[str, np.ndarray]
Step: TypeAlias = tuple[str, float, float]
"""What was compared, the largest difference, and the scale of the values."""

EVEN = ((1, 1), (1, 1))  # PyTorch's padding; Flax's "SAME" is uneven with a stride
NORM = {"momentum": 0.9, "unbiased": True}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The size of the network and the data."""

    width: int = 16
    """Channels of the first stage."""
    classes: int = 10
    """Classes that the network was trained on."""
    new_classes: int = 4
    """Classes of the new data."""
    size: int = 16
    """Height and width of the images."""
    images: int = 64
    """Images in a batch."""
    steps: int = 8
    """Training steps on the new data."""
    seed: int = 0
    """Seed for weights and images."""


# --- the network, in Linen and NNX -----------------------------------------------------------------


class Block(nn.Module):
    """A residual block with PyTorch's names."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the activations after the block."""

        def conv(name: str, kernel: int, stride: int) -> nn.Conv:
            padding = EVEN if kernel == 3 else "VALID"
            size = (kernel, kernel)
            return nn.Conv(self.features, size, stride, padding=padding, use_bias=False, name=name)

        y = jnl.BatchNorm(not train, **NORM, activation="relu", name="bn1")(
            conv("conv1", 3, self.stride)(x)
        )
        y = jnl.BatchNorm(not train, **NORM, name="bn2")(conv("conv2", 3, 1)(y))
        if self.stride > 1:
            x = conv("downsample_0", 1, self.stride)(x)
            x = jnl.BatchNorm(not train, **NORM, name="downsample_1")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A stem, two stages and a head."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits."""
        x = nn.Conv(self.width, (3, 3), padding=EVEN, use_bias=False, name="conv1")(x)
        x = jnl.BatchNorm(not train, **NORM, activation="relu", name="bn1")(x)
        x = Block(self.width, 1, name="layer1_0")(x, train)
        x = Block(2 * self.width, 2, name="layer2_0")(x, train)
        return nn.Dense(self.classes, name="fc")(x.mean((1, 2)))


class NnxBlock(nnx.Module):
    """The same block in NNX."""

    def __init__(self, inputs: int, features: int, stride: int, rngs: nnx.Rngs) -> None:
        def conv(inputs: int, kernel: int, stride: int) -> nnx.Conv:
            padding = EVEN if kernel == 3 else "VALID"
            size = (kernel, kernel)
            return nnx.Conv(
                inputs, features, size, stride, padding=padding, use_bias=False, rngs=rngs
            )

        self.conv1, self.conv2 = conv(inputs, 3, stride), conv(features, 3, 1)
        self.bn1 = jnx.BatchNorm(features, **NORM, activation="relu", rngs=rngs)
        self.bn2 = jnx.BatchNorm(features, **NORM, rngs=rngs)
        self.downsample: Any = nnx.data(None)
        if stride > 1:
            norm = jnx.BatchNorm(features, **NORM, rngs=rngs)
            self.downsample = nnx.List([conv(inputs, 1, stride), norm])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the activations after the block."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        for layer in self.downsample or ():
            x = layer(x)
        return nnx.relu(x + y)


class NnxResNet(nnx.Module):
    """The same network in NNX."""

    def __init__(self, width: int, classes: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, width, (3, 3), padding=EVEN, use_bias=False, rngs=rngs)
        self.bn1 = jnx.BatchNorm(width, **NORM, activation="relu", rngs=rngs)
        self.layer1 = nnx.List([NnxBlock(width, width, 1, rngs)])
        self.layer2 = nnx.List([NnxBlock(width, 2 * width, 2, rngs)])
        self.fc = nnx.Linear(2 * width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits."""
        x = self.bn1(self.conv1(x))
        for block in (*self.layer1, *self.layer2):
            x = block(x)
        return self.fc(x.mean((1, 2)))


# --- PyTorch's side --------------------------------------------------------------------------------


def random_state_dict(settings: Settings) -> StateDict:
    """Random weights and statistics under PyTorch's names."""
    rng, width = np.random.default_rng(settings.seed), settings.width
    weights: StateDict = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        deviation = (2 / (inputs * kernel**2)) ** 0.5
        weights[f"{name}.weight"] = rng.normal(0, deviation, (outputs, inputs, kernel, kernel))

    def norm(name: str, features: int) -> None:
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.5, features)
        weights[f"{name}.bias"] = rng.normal(0, 0.2, features)
        weights[f"{name}.running_mean"] = rng.normal(0, 0.2, features)
        weights[f"{name}.running_var"] = rng.uniform(0.5, 2, features)

    conv("conv1", 3, width, 3)
    norm("bn1", width)
    for stage, inputs, outputs in (("layer1.0", width, width), ("layer2.0", width, 2 * width)):
        conv(f"{stage}.conv1", inputs, outputs, 3)
        norm(f"{stage}.bn1", outputs)
        conv(f"{stage}.conv2", outputs, outputs, 3)
        norm(f"{stage}.bn2", outputs)
    conv("layer2.0.downsample.0", width, 2 * width, 1)
    norm("layer2.0.downsample.1", 2 * width)
    weights["fc.weight"] = rng.normal(0, 0.2, (settings.classes, 2 * width))
    weights["fc.bias"] = rng.normal(0, 0.2, settings.classes)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def as_pytorch_computes(state_dict: StateDict, images: np.ndarray) -> np.ndarray:
    """The logits in evaluation, computed with NumPy in float64 from PyTorch's definitions."""
    weights = {name: array.astype(np.float64) for name, array in state_dict.items()}

    def conv(name: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        weight = weights[f"{name}.weight"]
        pad = weight.shape[-1] // 2
        x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
        return np.einsum("bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], weight)

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        scale, bias, mean, var = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def block(name: str, x: np.ndarray, stride: int) -> np.ndarray:
        y = np.maximum(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)), 0)
        y = norm(f"{name}.bn2", conv(f"{name}.conv2", y))
        if stride > 1:
            x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
        return np.maximum(x + y, 0)

    x = np.moveaxis(images.astype(np.float64), -1, 1)
    x = np.maximum(norm("bn1", conv("conv1", x)), 0)
    x = block("layer2.0", block("layer1.0", x, 1), 2)
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


# --- one network in either system ------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A Linen module with its variables, or an NNX model."""

    model: Any
    variables: Any = None

    @property
    def given(self) -> dict[str, Any]:
        """The argument of the tools with the variables."""
        return {} if self.variables is None else {"variables": self.variables}

    def logits(self, images: Any, *, train: bool = False) -> Any:
        """The logits; nothing is updated."""
        if self.variables is not None:
            return self.model.apply(self.variables, images, train, mutable=["batch_stats"])[0]
        copied = nnx.clone(self.model)
        copied.set_attributes(use_running_average=not train, raise_if_not_found=False)
        return copied(images)

    def arrays(self) -> Any:
        """All parameters and running statistics, as a tree."""
        if self.variables is not None:
            return self.variables
        return nnx.to_pure_dict(nnx.state(self.model, (nnx.Param, nnx.BatchStat)))

    def with_arrays(self, arrays: Any) -> "Network":
        """The network with other arrays."""
        if self.variables is not None:
            return Network(self.model, arrays)
        model = nnx.clone(self.model)
        nnx.update(model, arrays)
        return Network(model)

    def changed(self, result: Any) -> "Network":
        """The network after a tool: its variables or its model is new."""
        return Network(result) if self.variables is None else Network(self.model, result)


def run(model: Any, images: Any) -> Any:
    """Runs either kind of model in evaluation."""
    return model(images)


def recalibrated(network: Network, images: Any) -> Network:
    """The network with exact statistics for these images."""
    halves = [images[::2], images[1::2]]
    return network.changed(
        tools.recalibrate(network.model, halves, run=run, layer_by_layer=True, **network.given)
    )


def fine_tuned(network: Network, images: Any, labels: Any, steps: int) -> Iterator[Network]:
    """Trains with frozen norms; yields the network after every step."""
    frozen = tools.freeze(network.model, **network.given)
    optimizer = optax.chain(optax.adamw(1e-3), optax.masked(optax.set_to_zero(), tools.norm_mask))

    def loss(logits: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    if network.variables is not None:
        state = tools.TrainState.of(frozen, network.variables, optimizer)

        @jax.jit
        def step(state: Any) -> Any:
            def of_params(params: Any) -> Any:
                logits, updated = state.apply_fn(
                    {"params": params, "batch_stats": state.batch_stats},
                    images,
                    True,
                    mutable=["batch_stats"],
                )
                return loss(logits), updated["batch_stats"]

            grads, stats = jax.grad(of_params, has_aux=True)(state.params)
            return state.apply_gradients(grads=grads, batch_stats=stats)

        for _ in range(steps):
            state = step(state)
            yield Network(network.model, state.variables)
    else:
        tuner = nnx.Optimizer(frozen, optimizer, wrt=nnx.Param)

        @nnx.jit
        def nnx_step(model: Any, tuner: Any) -> None:
            tuner.update(model, nnx.grad(lambda model: loss(model(images)))(model))

        for _ in range(steps):
            nnx_step(frozen, tuner)
            yield Network(tools.unfreeze(frozen))


# --- the life --------------------------------------------------------------------------------------


def life(system: str, settings: Settings) -> Iterator[Step]:
    """Goes through all steps in Linen or NNX, and yields what was compared."""
    rng = np.random.default_rng(settings.seed + 1)
    shape = (settings.images, settings.size, settings.size, 3)
    images = rng.normal(size=shape).astype(np.float32)
    shifted = jnp.asarray(0.4 * images + 0.8)  # another camera: brighter, with less contrast
    labels = rng.integers(settings.new_classes, size=settings.images)

    def compared(what: str, got: Any, want: Any) -> Step:
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        return what, float(np.abs(got - want).max()), float(np.abs(want).max())

    state_dict = random_state_dict(settings)
    network = converted(system, state_dict, settings.width, settings.classes)
    expected = as_pytorch_computes(state_dict, images)
    yield compared(
        "converted, against PyTorch's formulas in float64", network.logits(images), expected
    )

    before = tools.examine(network.model, shifted, run=run, **network.given)
    network = recalibrated(network, shifted)
    after = tools.examine(network.model, shifted, run=run, **network.given)
    worst = [max(float(layer.kl) for layer in e.layers.values()) for e in (before, after)]
    assert worst[1] < worst[0]
    yield compared(
        "recalibrated: evaluation against training",
        network.logits(shifted),
        network.logits(shifted, train=True),
    )

    there = tools.convert(network.variables or network.model, like=state_dict)
    network = converted(system, there, settings.width, settings.new_classes, keep="fc")
    statistics = stats_of(network)
    average = network.arrays()
    for tuned in fine_tuned(network, shifted, labels, settings.steps):
        average = tools.average(average, tuned.arrays(), decay=0.5)
        network = tuned
    yield compared("fine-tuned with frozen norms: statistics", stats_of(network), statistics)

    network = recalibrated(network.with_arrays(average), shifted)
    yield compared(
        "averaged and recalibrated: evaluation against training",
        network.logits(shifted),
        network.logits(shifted, train=True),
    )

    folded = tools.fold(network.model, shifted, run=run, **network.given)
    small = Network(folded.model, folded.variables)
    logits = network.logits(shifted)
    yield compared(f"folded {len(folded.pairs)} norms", small.logits(shifted), logits)

    def served(images: jax.Array) -> jax.Array:
        return small.logits(images)

    batch = export.symbolic_shape("batch")[0]
    example = jax.ShapeDtypeStruct((batch, *shape[1:]), jnp.float32)
    program = export.export(jax.jit(served), platforms=["cpu", "cuda", "tpu"])(example)
    program = export.deserialize(program.serialize())
    for n in (1, settings.images):
        yield compared(f"exported, batch of {n}", program.call(shifted[:n]), logits[:n])
    yield from to_onnx(served, shifted, logits, compared)

    back = tools.convert(
        network.variables or network.model, like=with_head(state_dict, settings.new_classes)
    )
    yield compared("back in PyTorch", as_pytorch_computes(back, np.asarray(shifted)), logits)


def converted(
    system: str, state_dict: StateDict, width: int, classes: int, keep: str | None = None
) -> Network:
    """A network with PyTorch's arrays, in evaluation mode."""
    if system == "NNX":
        model = NnxResNet(width, classes, nnx.Rngs(0))
        model.eval()
        return Network(tools.convert(state_dict, like=model, keep=keep))
    module = ResNet(width, classes)
    fresh = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return Network(module, tools.convert(state_dict, like=fresh, keep=keep))


def with_head(state_dict: StateDict, classes: int) -> StateDict:
    """The same names, with a head for another number of classes."""
    inputs = state_dict["fc.weight"].shape[1]
    head = {"fc.weight": np.zeros((classes, inputs)), "fc.bias": np.zeros(classes)}
    return state_dict | {name: array.astype(np.float32) for name, array in head.items()}


def stats_of(network: Network) -> np.ndarray:
    """All running statistics, in one vector."""
    if network.variables is not None:
        tree = network.variables["batch_stats"]
    else:
        tree = nnx.to_pure_dict(nnx.state(network.model, nnx.BatchStat))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def to_onnx(
    served: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    logits: jax.Array,
    compared: Callable[[str, Any, Any], Step],
) -> Iterator[Step]:
    """Converts to ONNX and runs it, if jax2onnx and ONNX Runtime are installed and work with this jax."""
    # Traced first, because jax2onnx replaces the calls of Flax's layers.
    traced = jaxpr_as_fun(jax.make_jaxpr(served)(images))
    try:
        jax2onnx, runtime = map(importlib.import_module, ("jax2onnx", "onnxruntime"))
        example = [jax.ShapeDtypeStruct(images.shape, images.dtype)]
        model = jax2onnx.to_onnx(lambda images: traced(images)[0], example)
    except (ImportError, AttributeError) as error:
        print(f"Without ONNX: {error}", file=sys.stderr)
        return
    session = runtime.InferenceSession(model.SerializeToString())
    name = session.get_inputs()[0].name
    yield compared("ONNX", session.run(None, {name: np.asarray(images)})[0], logits)


def main(settings: Settings) -> dict[str, list[Step]]:
    """Prints a table for each system, and returns the comparisons."""
    found = {}
    for system in ("Linen", "NNX"):
        table = Table("after", "largest difference", "values up to", title=system)
        found[system] = list(life(system, settings))
        for what, difference, scale in found[system]:
            table.add_row(what, f"{difference:.1e}", f"{scale:.2g}")
        Console().print(table)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
