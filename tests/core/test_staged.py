"""Caching of traced functions: similar options stay distinct, and sequences may be of any type."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

X = jnp.linspace(-1, 2, 24).reshape(2, 3, 4)


@pytest.mark.usefixtures("users_promotion")
def test_equal_options_of_other_types_are_other_options() -> None:
    """Python's 1.0 takes the dtype of x, NumPy's is a float32."""
    x = X.astype(jnp.bfloat16)
    of_numpy: Any = np.float32(1.0)
    for alpha, dtype in ((1.0, jnp.bfloat16), (of_numpy, jnp.float32), (1.0, jnp.bfloat16)):
        assert jn.dynamic_tanh(x, alpha).dtype == dtype


@pytest.mark.parametrize("axes", [[1, 2], {1, 2}, np.array([1, 2])], ids=["list", "set", "NumPy"])
def test_axes_may_be_kept_in_anything(axes: Any) -> None:
    """Axes may be any sequence: they are static, so tracing never sees them."""
    y = jn.layer_norm(X, reduction_axes=axes)
    np.testing.assert_allclose(y, jn.layer_norm(X, reduction_axes=(1, 2)), rtol=1e-5)


def test_groups_may_be_an_array() -> None:
    """Groups may be an array, such as a reshaped mesh."""

    def over(groups: Any) -> jax.Array:
        def device(x: jax.Array) -> jax.Array:
            return jn.layer_norm(x, axis_name="devices", axis_index_groups=groups)

        return jax.vmap(device, axis_name="devices")(X)

    np.testing.assert_array_equal(over(np.array([[0], [1]])), over([[0], [1]]))
