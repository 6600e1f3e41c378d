"""Weights of timm's models, where it is installed: `convert` and `fold` give their outputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxnorm import tools
from tests.tools import timm_models as models

timm: Any = pytest.importorskip("timm", exc_type=ImportError, reason="timm is not installed")
torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.usefixtures("users_promotion"),
    pytest.mark.filterwarnings("default"),  # those of PyTorch and timm
]


class Case(NamedTuple):
    """A model of timm's, the same in Linen, and the shape of its input."""

    torch: Callable[[], Any]
    linen: Any
    shape: tuple[int, ...]
    norms: int


CASES = {
    "regnety_002": Case(
        lambda: timm.create_model("regnety_002"), models.RegNet(), (2, 64, 64, 3), 44
    ),
    "mobilenetv3_small_100": Case(
        lambda: timm.create_model("mobilenetv3_small_100"),
        models.MobileNetV3(),
        (2, 64, 64, 3),
        34,
    ),
    "convnext_atto": Case(
        lambda: timm.create_model("convnext_atto"), models.ConvNeXt(), (2, 64, 64, 3), 0
    ),
    "inception_v3.Mixed_5b": Case(
        lambda: timm.create_model("inception_v3").Mixed_5b,
        models.InceptionA(32),
        (2, 9, 9, 192),
        7,
    ),
}


def randomized(module: Any) -> Any:
    """The module in evaluation, with statistics, scales and biases that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if "running_var" in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim == 1:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize("name", CASES)
def test_model(name: str) -> None:
    """The converted model has timm's outputs, folds completely, and converts back bit for bit."""
    make, model, shape, norms = CASES[name]
    module = randomized(make())
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        y = module(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    y = y.transpose(0, 2, 3, 1) if y.ndim == 4 else y

    state_dict = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    names = getattr(model, "names", None)
    variables = tools.convert(state_dict, like=shapes_of(model, x), names=names)
    assert_close(jax.jit(model.apply)(variables, x), y)

    renamed = {other: layer for layer, other in names.items()} if names else None
    back = tools.convert(variables, like=state_dict, names=renamed)
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array)

    if norms:
        folded = tools.fold(model, x, variables=variables)
        assert len(folded.pairs) == norms and not folded.refused
        assert_close(jax.jit(folded.model.apply)(folded.variables, x), y)


def shapes_of(model: nn.Module, x: Any) -> Any:
    """The shapes of the model's variables."""
    return jax.eval_shape(model.init, jax.random.key(0), x)


def assert_close(a: Any, b: Any) -> None:
    """Checks that two arrays are equal but for rounding."""
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())
