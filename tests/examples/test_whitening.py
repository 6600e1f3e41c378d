"""The convolution of the CIFAR-10 example that whitens patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.runs import RunError
from examples.whitening import whitening_convolution


@pytest.mark.parametrize(("size", "features"), [(2, 24), (3, 16), (4, 32)])
def test_outputs_are_white(size: int, features: int) -> None:
    """Over the patches, outputs have mean 0, variance 1 and no correlation; the second half is negated."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 12, 10, 1)) + rng.normal(size=(40, 12, 10, 3)) * (1, 2, 3) + 5
    kernel, bias = whitening_convolution(images, size, features)
    y = jax.lax.conv_general_dilated(
        jnp.asarray(images, jnp.float32),
        jnp.asarray(kernel),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    rows = np.asarray(y, np.float64).reshape(-1, features) + bias
    half = features // 2
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(rows[:, :half], rowvar=False), np.eye(half), atol=5e-3)
    np.testing.assert_allclose(rows[:, half:], -rows[:, :half], atol=1e-4)


@pytest.mark.parametrize("features", [7, 20])
def test_impossible_widths(features: int) -> None:
    """A width that is odd, or that needs more components than there are, is an error."""
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    with pytest.raises(RunError, match=f"at most 18, .* 3 × 3 pixels; got {features}"):
        whitening_convolution(images, 3, features)
