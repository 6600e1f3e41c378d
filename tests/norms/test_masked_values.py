"""Non-finite masked values are read as what the norm subtracts: the mean, or 0 without one.

Nothing depends on them, forward or backward, and norms that are documented as equal stay equal.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from tests import oracle, reference
from tests.calls import (
    ARGUMENTS,
    INPUT_STATS,
    INPUTS,
    MASK,
    MASKS,
    POSITIONS,
    STATS,
    X,
    arguments,
    functions,
)
from tests.cases import draw
from tests.oracle import assert_close, wide

BATCH, INSTANCE, LAYER = (0, 1, 2), (1, 2), -1


def mean_over(axes: Any, mask: Any = MASK) -> np.ndarray:
    """The mean of unmasked elements."""
    return oracle.moments(X, axes, mask).mean


def mean_of_groups() -> np.ndarray:
    """The means of two groups of two channels."""
    split, mask = (a.reshape(4, 4, 2, 2, 2) for a in (X, MASK))
    return np.repeat(oracle.moments(split, (1, 2, 4), mask).mean.reshape(4, 1, 1, 2), 2, -1)


def mean_of_switchable(batch: Callable[[], Any]) -> np.ndarray:
    """The mixture of means of switchable norm, given the mean of batch norm."""
    shares = np.exp(wide(INPUTS["mean_weights"]))
    means = mean_over(INSTANCE), mean_over((1, 2, 3)), batch()
    return sum(w * m for w, m in zip(shares / shares.sum(), means, strict=True))  # pyright: ignore[reportReturnType]


# What is subtracted; all other norms read masked elements as 0.
MEANS: dict[str, Callable[[], Any]] = {
    "ada_group_norm": mean_of_groups,
    "ada_layer_norm": partial(mean_over, LAYER),
    "adain": partial(mean_over, INSTANCE),
    "add_layer_norm": lambda: oracle.moments(wide(X) + X[::-1], LAYER, MASK).mean - X[::-1],
    "add_rms_norm": lambda: -X[::-1],
    "batch_norm": partial(mean_over, BATCH),
    "batch_norm_adapted": lambda: 0.25 * wide(STATS.mean) + 0.75 * mean_over(BATCH),
    "batch_norm_inference": lambda: wide(STATS.mean),
    "batch_renorm": partial(mean_over, BATCH),
    "batch_renorm_inference": lambda: wide(STATS.mean),
    "group_norm": mean_of_groups,
    "input_norm": lambda: reference.input_norm(wide(X), [*map(wide, INPUT_STATS)], mask=MASK)[1],
    "input_norm_inference": lambda: wide(STATS.mean),
    "instance_norm": partial(mean_over, INSTANCE),
    "iterative_whitening": partial(mean_over, BATCH, POSITIONS),
    "iterative_whitening_inference": lambda: wide(ARGUMENTS["iterative_whitening"]["stats"].mean),
    "layer_norm": partial(mean_over, LAYER),
    "mean_only_batch_norm": partial(mean_over, BATCH),
    "mean_only_batch_norm_inference": lambda: wide(STATS.mean),
    "switchable_norm": partial(mean_of_switchable, partial(mean_over, BATCH)),
    "switchable_norm_inference": partial(mean_of_switchable, lambda: wide(STATS.mean)),
    "tracked_instance_norm": partial(mean_over, INSTANCE),
}
FUNCTIONS = [name for name in functions("mask") if name != "moments"]  # which returns no y


@pytest.mark.sampled
@pytest.mark.parametrize("unreadable", [np.nan, -np.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_read_as_the_mean(name: str, unreadable: float) -> None:
    """Outputs, and gradients of all other elements, are as if the masked elements were the mean."""
    counted = MASKS.get(name, MASK)
    mask = np.broadcast_to(counted, X.shape)
    instead = MEANS[name]() if name in MEANS else np.zeros(1)
    instead = np.broadcast_to(instead, X.shape).astype(np.float32)
    given = arguments(name)
    options = {
        k: v
        for k, v in given.items()
        if k in ("num_groups", "running_share", "size", "simplex_size")
    }
    inputs = {k: v for k, v in given.items() if k not in {"x", "reduction_axes", *options}}
    dy = draw(np.random.default_rng(3), X.shape, "float32")

    @jax.jit
    def run(x: Any, inputs: Any, dy: Any) -> Any:
        def y_of(x: Any, inputs: Any) -> Any:
            y = getattr(jn, name)(x=x, **inputs, **options, mask=counted)
            return jax.tree.leaves(y)[0]

        y, pull = jax.vjp(y_of, x, inputs)
        return y, pull(jnp.where(mask, dy, 0)), pull(dy)

    y, elsewhere, everywhere = run(np.where(mask, X, np.float32(unreadable)), inputs, dy)
    want_y, want, _ = run(np.where(mask, X, instead), inputs, dy)
    assert_close(y, wide(want_y), 2e-6)
    for got, wanted in zip(jax.tree.leaves(elsewhere), jax.tree.leaves(want), strict=True):
        assert_close(got, wide(wanted), 1e-5)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(everywhere))
    assert not np.asarray(everywhere[0])[~mask].any()  # nothing depends on them


def test_batch_renorm_within_no_limits_is_batch_norm() -> None:
    """With rmax=1 and dmax=0, batch renorm of masked NaN equals batch norm in outputs and gradients."""
    x = np.where(MASK, X, np.float32(np.nan))
    scale, bias = INPUTS["scale"], INPUTS["bias"]
    renorm = partial(jn.batch_renorm, rmax=1.0, dmax=0.0)

    @jax.jit
    def both(*arrays: Any) -> Any:
        def pulled(norm: Any) -> Any:
            f = partial(norm, epsilon=1e-3, mask=MASK)
            y, pull = jax.vjp(lambda x, *affine: f(x, STATS, *affine)[0], *arrays)
            return y, pull(jnp.asarray(X[::-1]))

        return pulled(renorm), pulled(jn.batch_norm)

    ours, theirs = map(jax.tree.leaves, both(x, scale, bias))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, wide(b), 1e-5)


@pytest.mark.parametrize("norm_before_gate", [True, False])
@pytest.mark.parametrize("where", [0, 1], ids=["x", "gate"])
def test_a_gate(where: int, norm_before_gate: bool) -> None:
    """Masked values of x or the gate that are not finite do not affect the gradient of any argument."""
    args = X, X[::-1], np.ones(X.shape[-1], np.float32)
    mask = jnp.asarray(MASK)

    def loss(*args: Any) -> Any:
        y = jn.gated_rms_norm(*args, mask=mask, norm_before_gate=norm_before_gate)
        return jnp.where(mask, y, 0).sum()

    def gradients(instead: float) -> Any:
        given = list(map(jnp.asarray, args))
        given[where] = jnp.where(mask, given[where], instead)
        return jax.jit(jax.grad(loss, (0, 1, 2)))(*given)

    for got, want in zip(gradients(np.nan), gradients(0), strict=True):
        np.testing.assert_array_equal(got, want)
