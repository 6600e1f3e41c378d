"""What the tests against other libraries share. `make references` installs these libraries."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import jax
import numpy as np
import pytest

MARKS = [
    pytest.mark.thorough,
    pytest.mark.usefixtures("users_promotion"),
    pytest.mark.filterwarnings("default"),  # those of the libraries
]


def load(theirs: str) -> Any:
    """What a library has, written as ``module:name``."""
    library = theirs.split(":")[0].split(".")[0]
    pytest.importorskip(library, exc_type=ImportError, reason=f"{library} is not installed")
    return resolve_name(theirs)


def module_of(theirs: str, options: dict[str, Any]) -> Any:
    """A module of PyTorch with random parameters."""
    module = load(theirs)(**options)
    generator = load("torch").Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0.5, 0.5, generator=generator)
    return module


def parameters_of(module: Any) -> dict[str, np.ndarray]:
    """The parameters of a module of PyTorch, by name."""
    return {name: value.detach().numpy().copy() for name, value in module.named_parameters()}


def differentiated(
    module: Any, inputs: list[np.ndarray], dy: Any, call: Callable[..., Any]
) -> tuple[Any, Any]:
    """What ``call`` of a module of PyTorch returns, and the gradients of its parameters and inputs."""
    torch = load("torch")
    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in inputs]
    module.zero_grad()
    y = call(module, *leaves)
    torch.autograd.backward(y, jax.tree.map(torch.from_numpy, dy))
    gradients = {name: value.grad.numpy().copy() for name, value in module.named_parameters()}
    y = jax.tree.map(lambda y: y.detach().numpy(), y)
    return y, (gradients, *(leaf.grad.numpy() for leaf in leaves))


def assert_same(ours: Any, theirs: Any) -> None:
    """Compares trees of arrays in float32."""

    def close(a: Any, b: Any) -> None:
        b = np.asarray(b)
        assert a.shape == b.shape and a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * np.abs(b).max())

    jax.tree.map(close, ours, theirs)
