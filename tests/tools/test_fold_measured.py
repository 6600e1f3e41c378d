"""`fold` compares what models compute: sizes, dtypes, outputs and devices that made the comparison wrong."""

import math
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnorm import linen as jnl, nnx as jnx, tools
from jaxnorm.tools._fold import _fold
from jaxnorm.tools._fold._folded import without_norms
from tests.modules import loose
from tests.tools.folding import Layers, Model, applied, data, linen, random_arrays

PAIR = {"layers_1": "layers_0"}


@pytest.mark.sampled
@pytest.mark.parametrize("norm", [nn.BatchNorm, jnl.BatchNorm])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dense(8), (1024, 4)),
        (nn.Conv(8, (3, 3)), (8, 16, 16, 4)),
        (nn.ConvTranspose(8, (2, 2), strides=(2, 2)), (4, 16, 16, 4)),
    ],
    ids=["dense", "conv", "transposed"],
)
def test_large_outputs(norm: Any, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The norm's output is that of the model, with more values than XLA reduces without fusion."""
    model, x = Layers((layer, norm(True))), data(*shape)  # pyright: ignore[reportArgumentType]
    assert tools.fold(model, x, variables=linen(model, x)).pairs == PAIR


def with_class(x: jax.Array) -> Any:
    """Logits, the class, a mask and a random key."""
    y = nn.relu(nn.BatchNorm(True, dtype=jnp.bfloat16)(nn.Dense(8, dtype=jnp.bfloat16)(x)))
    logits = nn.Dense(21, dtype=jnp.bfloat16)(y)
    return {
        "logits": logits,
        "class": logits.argmax(-1),
        "mask": jnp.where(logits > 0, logits, -jnp.inf),
        "key": jax.random.key(0),
    }


def test_outputs_that_are_not_numbers() -> None:
    """A class that flips in a near tie is no reason to refuse."""
    model, x = Model(with_class), data(512, 4)
    with loose():
        variables = model.init(jax.random.key(1), x)
        folded = tools.fold(model, x, variables=random_arrays(variables))
    assert len(folded.pairs) == 1 and 0 <= folded.difference < 1


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_other_outputs_that_are_not_finite(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """A folded model with values that are not finite where the model has numbers is refused."""
    model, x = Layers((nn.Dense(8), nn.BatchNorm(True))), data(16, 4)
    variables = linen(model, x)

    def broken(*args: Any) -> Any:
        smaller, changed = without_norms(*args)
        changed["params"]["layers_0"]["bias"] = jnp.full(8, value)
        return smaller, changed

    monkeypatch.setattr(_fold, "without_norms", broken)
    with pytest.raises(ValueError, match="outputs differ by inf"):
        tools.fold(model, x, variables=variables)


@pytest.mark.parametrize("value", [-np.inf, np.nan, -1e30])
def test_outputs_that_are_not_finite_or_huge(value: float) -> None:
    """They must be the same, and the others are compared."""

    def masked(x: jax.Array) -> Any:
        y = nn.BatchNorm(True, name="norm")(nn.Dense(8, name="dense")(x))
        return jnp.where(jnp.arange(8) < 5, y, value), y

    model, x = Model(masked), data(16, 4)
    folded = tools.fold(model, x, variables=linen(model, x))
    assert folded.pairs == {"norm": "dense"} and folded.difference < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_large_means_in_half_precision(dtype: Any) -> None:
    """The rounding is that of the layer's output, of which the norm removes most."""
    model = Layers((nn.Dense(16, dtype=dtype), nn.BatchNorm(True, dtype=dtype), nn.relu))
    x = data(64, 8)
    with loose():
        variables: Any = model.init(jax.random.key(0), x)
        variables["params"]["layers_0"]["bias"] += 100.0
        variables = tools.recalibrate(model, [x], variables=variables)
        assert tools.fold(model, x, variables=variables).pairs == PAIR


def test_a_mean_beyond_half_precision() -> None:
    """Where rounding is as large as the result, no layer is blamed: the outputs of the models differ."""
    model = Layers((nn.Dense(16, dtype=jnp.float16), nn.BatchNorm(True, dtype=jnp.float16)))
    x = data(64, 8)
    with loose():
        variables: Any = model.init(jax.random.key(0), x)
        variables["params"]["layers_0"]["bias"] += 1000.0
        variables = tools.recalibrate(model, [x], variables=variables)
        with pytest.raises(ValueError, match="must compute what the model computes"):
            tools.fold(model, x, variables=variables)


def test_cancellation_in_half_precision() -> None:
    """Rounded weights times inputs with a mean of 20 are off by some percent of what their sum leaves."""
    model = Layers((nn.Dense(16, dtype=jnp.bfloat16), nn.BatchNorm(True, dtype=jnp.bfloat16)))
    x = data(64, 64) + 20
    with loose():
        variables: Any = model.init(jax.random.key(0), x)
        kernel = variables["params"]["layers_0"]["kernel"]
        variables["params"]["layers_0"]["kernel"] = kernel - kernel.mean(0)
        variables = tools.recalibrate(model, [x], variables=variables)
        assert tools.fold(model, x, variables=variables).pairs == PAIR


class Clipped(nn.Dense):
    """A dense layer that clips its kernel."""

    def param(self, name: str, *args: Any, **options: Any) -> Any:
        """Returns the clipped kernel, or the bias as it is."""
        value = super().param(name, *args, **options)
        return jnp.clip(value, -9, 9) if name == "kernel" else value


def test_every_call_compares_its_own_arrays() -> None:
    """Of two models that share a program, one can be refused."""
    model, x = Layers((Clipped(8), nn.BatchNorm(True))), data(16, 4)
    variables = linen(model, x)
    large = jax.tree.map(lambda a: a, variables)
    large["batch_stats"]["layers_1"]["var"] /= 1000
    for _ in range(2):
        assert tools.fold(model, x, variables=variables).pairs == PAIR
        with pytest.raises(ValueError, match="arrays does not return what the two return"):
            tools.fold(model, x, variables=large)


def test_arrays_are_arguments_of_the_programs(tmp_path: Path) -> None:
    """A kernel that is a constant of a program makes it slow to compile, and of no use for the next model."""
    model, x = (
        Layers((nn.Dense(41), nn.BatchNorm(True), nn.Dense(43), nn.BatchNorm(True))),
        data(5, 37),
    )
    variables = linen(model, x)
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    try:
        tools.fold(model, x, variables=variables)
    finally:
        jax.config.update("jax_dump_ir_to", None)
    programs = [file.read_text() for file in tmp_path.iterdir()]
    constants = [re.findall(r"constant dense.*: tensor<(.*)x\w+>", text) for text in programs]
    sizes = [math.prod(map(int, shape.split("x"))) for shapes in constants for shape in shapes]
    assert len(programs) >= 2 and max(sizes, default=0) < 41
    assert sum("tensor<37x41xf32>" in text for text in programs) >= 2


def test_variables_without_a_device_of_their_own() -> None:
    """They stay free to move to where the batch is, in the result too, and in that of `convert`."""
    mesh = Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    model, x = Layers((nn.Dense(8), nn.BatchNorm(True), nn.relu)), data(64, 4)
    variables = linen(model, x)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    folded = tools.fold(model, sharded, variables=variables)
    y = applied(model, variables, x)
    found = applied(folded.model, folded.variables, sharded)
    np.testing.assert_allclose(found, y, 1e-4, 1e-5)
    same = tools.convert(variables, like=variables)
    np.testing.assert_allclose(applied(model, same, sharded), y, 1e-5, 1e-5)
    network = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)),
        jnx.BatchNorm(8, use_running_average=True, rngs=nnx.Rngs(0)),
    )
    small = tools.fold(network, sharded).model
    np.testing.assert_allclose(small(sharded), network(x), 1e-4, 1e-5)
