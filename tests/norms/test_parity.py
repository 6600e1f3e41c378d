"""The same numbers as PyTorch, where it is installed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests.cases import draw

torch: Any = pytest.importorskip(
    "torch", reason="PyTorch is not installed: nothing to compare with"
)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 6), (8, 3, 5, 4)], ids=str)
def test_torch_over_twenty_steps(shape: tuple[int, ...], momentum: float | None) -> None:
    """unbiased=True and the weight of the old value: outputs, running state, gradients, evaluation."""
    layer = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(
        3, momentum=momentum
    )
    rng = np.random.default_rng(0)
    scale, bias = draw(rng, (2, 3), "float32", 1.0)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(scale))
        layer.bias.copy_(torch.from_numpy(bias))
    stats = jn.init_running_stats(3, cumulative=momentum is None)
    kept = None if momentum is None else 1 - momentum

    @jax.jit
    def step(x: Any, stats: Any, scale: Any, bias: Any, dy: Any) -> Any:
        def f(x: Any, scale: Any, bias: Any) -> Any:
            return jn.batch_norm(
                x, stats, scale, bias, feature_axes=1, momentum=kept, unbiased=True
            )

        y, pull, stats_ = jax.vjp(f, x, scale, bias, has_aux=True)
        return y, stats_, pull(dy)

    for i in range(20):
        x, dy = draw(rng, shape, "float32", float(i), 2.0), draw(rng, shape, "float32")
        theirs = torch.from_numpy(x.copy()).requires_grad_()
        out = layer(theirs)
        layer.zero_grad()
        out.backward(torch.from_numpy(dy))
        y, stats, gradients = step(x, stats, scale, bias, dy)
        np.testing.assert_allclose(y, out.detach().numpy(), atol=2e-5)
        for ours, grad in zip(
            gradients, (theirs.grad, layer.weight.grad, layer.bias.grad), strict=True
        ):
            np.testing.assert_allclose(ours, grad.numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stats.mean, layer.running_mean.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(stats.var, layer.running_var.numpy(), rtol=1e-5)
    layer.eval()
    x = draw(rng, shape, "float32", 3.0)
    y = jn.batch_norm_inference(x, stats, scale, bias, feature_axes=1)
    np.testing.assert_allclose(y, layer(torch.from_numpy(x)).detach().numpy(), atol=2e-5)
    if momentum is None:
        np.testing.assert_array_equal(stats.count, int(layer.num_batches_tracked))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_in_half_precision(dtype: str) -> None:
    """A half-precision input with float32 parameters, PyTorch's mixed mode: y to one rounding."""
    layer = torch.nn.BatchNorm1d(3)
    x = draw(np.random.default_rng(0), (64, 3), "float32", 3.0, 2.0)
    half = torch.from_numpy(x).to(getattr(torch, dtype))
    exact = half.to(torch.float32).numpy()
    y, _ = jn.batch_norm(jnp.asarray(exact, dtype), jn.init_running_stats(3), dtype=dtype)
    eps = float(jnp.finfo(dtype).eps)
    want = layer(half).detach().to(torch.float32).numpy()
    np.testing.assert_allclose(np.float32(y), want, rtol=eps, atol=1e-3 * eps)
