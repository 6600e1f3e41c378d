"""Compares a PyTorch ResNet-18 with the same network in Linen after `tools.convert`, layer by layer.

    python -m benchmarks.resnet18 [--write]

All parameters and running statistics of the PyTorch network are random. The outputs of every layer are
compared in evaluation and in training, and the running statistics after one training step: in float32, as a
fraction of the largest value.
"""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tyro

from benchmarks.results import PICTURES, RESULTS
from examples import report
from examples.environment import machine_used, versions_used
from jaxnorm import linen as jnl, tools

STAGES = (64, 128, 256, 512)
SHAPE = (4, 64, 64, 3)


@dataclass(frozen=True)
class Options:
    """Compares a PyTorch ResNet-18 with the same network in Linen after `tools.convert`."""

    write: bool = False
    """Store the figures in benchmarks/results, and draw docs/images/convert.png."""


class Block(nn.Module):
    """Two convolutions and a shortcut, with torchvision's layer names."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns activations with `features` channels for an input (N, H, W, C)."""
        y = conv(self.features, 3, self.strides, "conv1")(x)
        y = nn.relu(norm(train, "bn1")(y))
        y = norm(train, "bn2")(conv(self.features, 3, 1, "conv2")(y))
        if self.strides > 1:
            x = conv(self.features, 1, self.strides, "downsample_0")(x)
            x = norm(train, "downsample_1")(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2015, https://arxiv.org/abs/1512.03385), with torchvision's layer names."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns logits (N, 1000) for images (N, H, W, 3)."""
        x = nn.relu(norm(train, "bn1")(conv(64, 7, 2, "conv1")(x)))
        padding: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        for stage, features in enumerate(STAGES):
            for i in range(2):
                strides = 2 if stage and not i else 1
                x = Block(features, strides, name=f"layer{stage + 1}_{i}")(x, train)
        return nn.Dense(1000, name="fc")(x.mean((1, 2)))


def conv(features: int, size: int, strides: int, name: str) -> nn.Module:
    """A convolution with the same padding on both sides, as in PyTorch."""
    padding = (size // 2, size // 2)
    return nn.Conv(features, (size, size), strides, (padding, padding), use_bias=False, name=name)


def norm(train: bool, name: str) -> nn.Module:
    """A batch norm with PyTorch's defaults, as given by `tools.torch_options`."""
    return jnl.BatchNorm(not train, momentum=0.9, unbiased=True, name=name)


def in_torch(torch: Any, seed: int = 0) -> Any:
    """Returns the same network in PyTorch, with random parameters and running statistics."""
    layers = torch.nn

    def conv(inputs: int, outputs: int, size: int, strides: int) -> Any:
        return layers.Conv2d(inputs, outputs, size, strides, size // 2, bias=False)

    class Block(layers.Module):
        def __init__(self, inputs: int, outputs: int, strides: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, 3, strides), layers.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3, 1), layers.BatchNorm2d(outputs)
            self.downsample: Any = layers.Sequential()
            if strides > 1:
                shortcut = conv(inputs, outputs, 1, strides)
                self.downsample = layers.Sequential(shortcut, layers.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (self.downsample(x) + y).relu()

    class ResNet18(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(3, 64, 7, 2), layers.BatchNorm2d(64)
            inputs = 64
            for stage, outputs in enumerate(STAGES):
                first = Block(inputs, outputs, 2 if stage else 1)
                blocks = layers.Sequential(first, Block(outputs, outputs, 1))
                setattr(self, f"layer{stage + 1}", blocks)
                inputs = outputs
            self.fc = layers.Linear(512, 1000)

        def forward(self, x: Any) -> Any:
            x = layers.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
            for stage in range(len(STAGES)):
                x = getattr(self, f"layer{stage + 1}")(x)
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(seed)
    model = ResNet18()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, layers.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
    return model


def outputs_in_torch(torch: Any, model: Any, images: np.ndarray, train: bool) -> dict[str, Any]:
    """Returns the output of each layer with parameters, channels last, by layer name."""
    found: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, y, name=name: found.update({name: y.detach().numpy()})
        )
        for name, module in model.named_modules()
        if not list(module.children()) and list(module.parameters())
    ]
    model.train(train)
    with torch.no_grad():
        model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for hook in hooks:
        hook.remove()
    return {name: np.moveaxis(y, 1, -1) if y.ndim == 4 else y for name, y in found.items()}


def outputs_in_linen(variables: Any, images: Any, train: bool) -> tuple[dict[str, Any], Any]:
    """Returns the same outputs in Linen, and the updated running statistics."""

    @jax.jit
    def run(variables: Any, images: Any) -> Any:
        mutable = ["intermediates", "batch_stats"] if train else ["intermediates"]
        _, new = ResNet18().apply(
            variables,
            images,
            train,
            mutable=mutable,
            capture_intermediates=lambda m, _: isinstance(m, nn.Conv | nn.Dense | jnl.BatchNorm),
        )
        return new

    new = run(variables, images)
    leaves = jax.tree_util.tree_leaves_with_path(new["intermediates"])
    found = {".".join(str(k.key) for k in path[:-2]): np.asarray(leaf) for path, leaf in leaves}
    return found, new.get("batch_stats")


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference, as a fraction of the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def measured() -> dict[str, Any]:
    """Returns how far each layer is from PyTorch's in both modes, and the statistics after a step."""
    torch = import_module("torch")
    model = in_torch(torch)
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    like = jax.eval_shape(lambda x: ResNet18().init(jax.random.key(0), x, train=False), images)
    variables = tools.convert(model.state_dict(), like=like)
    found: dict[str, Any] = {"machine": machine_used(), "versions": versions_used("torch")}
    for mode, train in (("evaluation", False), ("training", True)):
        theirs = outputs_in_torch(torch, model, images, train)
        ours, stats = outputs_in_linen(variables, images, train)
        by_name = {linen.replace("_", "."): y for linen, y in ours.items()}
        found[mode] = {name: apart(by_name[name], y) for name, y in theirs.items()}
    moved = tools.convert({**variables, "batch_stats": stats}, like=model.state_dict())
    found["statistics"] = {
        name: apart(moved[name], value.numpy())
        for name, value in model.state_dict().items()
        if "running" in name
    }
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws the differences of all layers, from the first to the last."""
    figure, axes = report.new_figure(
        "ResNet-18 from PyTorch, converted: every layer's output",
        "Largest difference over the largest value, float32; at the foot: equal to the bit",
    )
    foot = 5e-8
    styles = {"training": (report.ORANGE, "^"), "evaluation": (report.BLUE, "o")}
    for mode, (colour, marker) in styles.items():
        values = [max(value, foot) for value in found[mode].values()]
        axes.plot(
            range(1, len(values) + 1), values, marker, color=colour, ms=5, label=mode, clip_on=False
        )
    axes.axhline(float(np.finfo(np.float32).eps), color=report.GREY, lw=1)
    axes.annotate(
        "rounding of one float32",
        (1, np.finfo(np.float32).eps),
        (0, -12),
        textcoords="offset points",
        color=report.GREY,
    )
    axes.set_yscale("log")
    axes.set_ylim(foot, 1e-4)
    axes.set_xlabel("Layer, from the input to the logits")
    axes.legend(loc="upper left", frameon=False)
    report.save(figure, path)


def main(options: Options) -> None:
    """Prints the largest difference of each kind."""
    found = measured()
    for what in ("evaluation", "training", "statistics"):
        name, worst = max(found[what].items(), key=lambda item: item[1])
        print(f"{what:12} {len(found[what]):3} arrays, at most {worst:.1e} apart ({name})")
    if options.write:
        (RESULTS / "resnet18.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found, PICTURES / "convert.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
