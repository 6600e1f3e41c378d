"""`convert` from Haiku and Equinox gives the same outputs in evaluation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import linen as jnl, tools
from jaxnorm.tools._convert._formats import _layout
from tests.tools.convert_models import IMAGES, assert_same, shapes_of

pytestmark = pytest.mark.usefixtures("users_promotion")


class Small(nn.Module):
    """Layers that both libraries have: convolutions, transposed ones, batch norm, group norm and dense."""

    epsilon: float = 1e-5
    group_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Takes images of shape (N, 8, 8, 3)."""
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = jnl.BatchNorm(True, epsilon=self.epsilon, name="bn")(x)
        x = nn.ConvTranspose(4, (2, 2), (2, 2), padding="VALID", name="up")(x)
        if self.group_norm:
            x = jnl.GroupNorm(2, epsilon=1e-5, name="group")(x)
        return nn.Dense(5, name="fc")(x.mean((1, 2)))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 1, 4)], ids=str)
def test_haiku_by_hand(shape: tuple[int, ...]) -> None:
    """Without Haiku: averages become running statistics, and axes of size 1 are removed."""
    stats = {
        f"net/~/bn/~/{which}_ema": {
            "average": np.full(shape, value, np.float32),
            "hidden": np.full(shape, 9, np.float32),
            "counter": np.asarray(3),
        }
        for which, value in (("mean", 0.5), ("var", 2.0))
    }
    affine = np.ones(shape, np.float32)
    like = {
        collection: {"bn": layer}
        for collection, layer in shapes_of(jnl.BatchNorm(True), np.ones((2, 4), np.float32)).items()
    }
    params = {"net/~/bn": {"scale": affine, "offset": 2 * affine}}
    found = tools.convert((params, stats), like=like, names={"": "net"})
    four = jnp.ones(4)
    expected = {
        "params": {"bn": {"scale": four, "bias": 2 * four}},
        "batch_stats": {"bn": {"mean": four / 2, "var": 2 * four}},
    }
    assert_same(found, expected)


@pytest.mark.parametrize("channels_first", [False, True])
def test_haiku(channels_first: bool) -> None:
    """Outputs agree after training steps, for either order of axes."""
    hk = pytest.importorskip("haiku", exc_type=ImportError, reason="dm-haiku is not installed")
    order = "NCHW" if channels_first else "NHWC"

    def f(x: Any, train: bool) -> Any:
        x = hk.Conv2D(4, 3, data_format=order, name="conv")(x)
        x = hk.BatchNorm(
            True, True, 0.9, data_format="N..C" if order == "NHWC" else "NC...", name="bn"
        )(x, train)
        x = hk.Conv2DTranspose(4, 2, 2, padding="VALID", data_format=order)(x)
        x = hk.GroupNorm(
            2, data_format="channels_first" if channels_first else "channels_last", name="group"
        )(x)
        return hk.Linear(5, name="fc")(x.mean((2, 3) if channels_first else (1, 2)))

    model = hk.transform_with_state(f)
    x = IMAGES.transpose(0, 3, 1, 2) if channels_first else IMAGES
    params, state = model.init(jax.random.key(0), x, True)
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params
    )
    for i in range(3):
        _, state = model.apply(params, state, None, x + i, True)
    y, _ = model.apply(params, state, None, x, False)
    names = {"up": "conv2_d_transpose"}
    variables = tools.convert((params, state), like=shapes_of(Small()), names=names)
    found: Any = Small().apply(variables, IMAGES)
    np.testing.assert_allclose(found, y, atol=2e-5)


def of_equinox(name: str, leaves: tuple[str, ...]) -> Any:
    """A class that looks like one of Equinox, with these attributes as leaves."""
    bases = () if name == "Module" else (of_equinox("Module", ()),)
    cls = type(name, bases, {"__module__": "equinox.nn"})

    def flatten(layer: Any) -> Any:
        return [(jax.tree_util.GetAttrKey(n), getattr(layer, n)) for n in leaves], None

    jax.tree_util.register_pytree_with_keys(cls, flatten, lambda *_: pytest.fail("not rebuilt"))
    return cls


def test_equinox_by_hand() -> None:
    """Without Equinox: layers are read as a whole, with the running statistics in the state."""
    conv = of_equinox("Conv", ("weight", "bias"))()
    conv.weight, conv.bias = np.arange(12.0).reshape(4, 3, 1, 1), np.arange(4.0).reshape(4, 1, 1)
    bn = of_equinox("BatchNorm", ("weight", "bias", "ema_state_index"))()
    bn.weight, bn.bias, bn.mode, bn.ema_state_index = np.full(4, 2.0), np.full(4, 3.0), "ema", 7
    model = of_equinox("Module", ("conv", "bn"))()
    model.conv, model.bn = conv, bn
    state = {7: (np.full(4, 4.0), np.full(4, 5.0))}

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return jnl.BatchNorm(True, name="bn")(nn.Conv(4, (1, 1), name="conv")(x))

    found = tools.convert((model, state), like=shapes_of(Two()))
    kernel = conv.weight.transpose(2, 3, 1, 0)
    expected = {
        "params": {
            "conv": {"kernel": kernel, "bias": np.arange(4.0)},
            "bn": {"scale": bn.weight, "bias": bn.bias},
        },
        "batch_stats": {"bn": {"mean": state[7][0], "var": state[7][1]}},
    }
    assert_same(found, jax.tree.map(np.float32, expected))


@pytest.mark.parametrize("mode", ["ema", "batch"])
@pytest.mark.parametrize("steps", [1, 3])
def test_equinox(mode: str, steps: int) -> None:
    """Outputs agree after training steps; Equinox puts channels first and keeps its state separately."""
    eqx = pytest.importorskip("equinox", exc_type=ImportError, reason="equinox is not installed")
    key = jax.random.key(0)

    class Model(eqx.Module):
        conv: Any
        bn: Any
        up: Any
        group: Any
        fc: Any

        def __init__(self) -> None:
            self.conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key)
            self.bn = eqx.nn.BatchNorm(4, "batch", mode=mode, momentum=0.9)
            self.up = eqx.nn.ConvTranspose2d(4, 4, 2, 2, key=key)
            self.group = eqx.nn.GroupNorm(2, 4)
            self.fc = eqx.nn.Linear(4, 5, key=key)

        def __call__(self, x: Any, state: Any) -> Any:
            x, state = self.bn(self.conv(x), state)
            x = self.group(self.up(x))
            return self.fc(x.mean((1, 2))), state

    model, state = eqx.nn.make_with_state(Model)()
    x = jnp.asarray(IMAGES.transpose(0, 3, 1, 2))
    for i in range(steps):
        step = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        _, state = step(2 * x + i, state)
    still = eqx.nn.inference_mode(model)
    y, _ = jax.vmap(still, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
    variables = tools.convert((model, state), like=shapes_of(Small()), transposed=["up"])
    found: Any = Small().apply(variables, IMAGES)
    np.testing.assert_allclose(found, y, atol=2e-5)
    with pytest.raises(ValueError, match="must come with its state"):
        tools.convert(model, like=variables)


def test_grouped_transposed_convolution_of_equinox() -> None:
    """Equinox's layout differs from PyTorch's in its groups and in a flipped window."""
    eqx = pytest.importorskip("equinox", exc_type=ImportError, reason="equinox is not installed")
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = eqx.nn.ConvTranspose1d(4, 6, 3, 2, groups=2, key=jax.random.key(0))
    theirs = torch.nn.ConvTranspose1d(4, 6, 3, 2, groups=2)
    made = tools.convert(layer, like=theirs.state_dict())
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in made.items()})
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    y = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(layer(x), y, atol=1e-6)


def test_channels_move_where_inputs_are_not_flattened() -> None:
    """A kernel with an axis for each of two input sizes keeps them; a flattened one stays flat."""
    kernel = np.arange(24.0).reshape(2, 3, 4)
    apart = _layout._with_channels(kernel, (2, 3), last=True, keep=1)
    np.testing.assert_array_equal(apart, kernel.swapaxes(0, 1))
    flat = _layout._with_channels(kernel.reshape(6, 4), (2, 3), last=True, keep=1)
    np.testing.assert_array_equal(flat, apart.reshape(6, 4))
