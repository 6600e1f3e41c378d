"""Every tool accepts boxed variables, as `flax.linen.with_partitioning` makes them, with the same results."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxnorm import linen as jnl, tools
from tests.modules import assert_close, normal

X = normal((8, 4))


class Model(nn.Module):
    """A layer and its norm, both with boxes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs in evaluation mode."""

        def boxed(init: Any, *names: Any) -> Any:
            return nn.with_partitioning(init, names)

        ones, zeros = (boxed(i, "model") for i in (nn.initializers.ones, nn.initializers.zeros))
        kernel = boxed(nn.initializers.lecun_normal(), None, "model")
        x = nn.Dense(4, kernel_init=kernel, bias_init=zeros)(x)
        return jnl.BatchNorm(use_running_average=True, scale_init=ones, bias_init=zeros)(x)


TOOLS: dict[str, Callable[[Any], Any]] = {
    "average": lambda v: tools.average(v, v, 0.5),
    "convert": lambda v: tools.convert(nn.unbox(v), like=v),
    "decay_mask": lambda v: tools.decay_mask(v["params"]),
    "examine": lambda v: health_of(v),
    "fold": lambda v: tools.fold(Model(), X, variables=v).variables,
    "freeze": lambda v: tools.freeze(Model(), variables=v, affine=True).apply(v, X),
    "keep_finite": lambda v: tools.keep_finite(v, v),
    "norm_mask": lambda v: tools.norm_mask(v["params"]),
    "recalibrate": lambda v: tools.recalibrate(Model(), [X], variables=v),
    "swap": lambda v: tools.swap(Model(), "layer", variables=v)[1],
}


def health_of(variables: Any) -> Any:
    """The health of the only norm."""
    (health,) = tools.examine(Model(), X, variables=variables).layers.values()
    return health._asdict()


@pytest.mark.parametrize("tool", TOOLS)
def test_boxes_change_nothing(tool: str) -> None:
    """The leaves are the same as for variables without boxes."""
    variables = Model().init(jax.random.key(0), X)
    ours, plain = (
        jax.tree.map(np.asarray, nn.unbox(TOOLS[tool](v))) for v in (variables, nn.unbox(variables))
    )
    assert_close(ours, plain, 1e-6)
