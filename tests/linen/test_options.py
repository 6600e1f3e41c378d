"""Our own options of the Linen norms: optional running statistics, channels first, and others."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm import linen as jnl
from tests.modules import KEY, RANDOM, Fields, X, assert_close, assert_equal, compiled, inits, ramp

TRACKED: Fields = {"track_running_stats": True, "scale_init": ramp, "bias_init": ramp}
UNTRACKED: Fields = {"track_running_stats": False, "scale_init": ramp, "bias_init": ramp}
BATCHES = [X, 2 * X + 1, X[::-1] - 3]


def initial(layer: nn.Module, x: jax.Array = X, key: jax.Array = KEY) -> Any:
    """Initial variables; the first batch is not in their statistics."""
    return compiled(lambda x, key: layer.init(key, x, use_running_average=False), x, key)


def step(layer: nn.Module, variables: Any, x: jax.Array, mask: Any = None) -> Any:
    """Output and variables after a training step."""
    call: Fields = {"use_running_average": False, "mask": mask, "mutable": ["batch_stats"]}
    y, updated = layer.apply(variables, x, **call)
    return y, {**variables, **updated}


# --- instance norm -------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"feature_axes": (1, 3)}, {"momentum": None}], ids=str)
def test_instance_norm_has_the_variables_of_batch_norm(fields: Fields) -> None:
    """Names, shapes and dtypes match batch norm with the same features, so a model can swap the two."""
    instance = jnl.InstanceNorm(**TRACKED, **fields)
    axes = {"axis": fields["feature_axes"]} if "feature_axes" in fields else fields
    batch = jnl.BatchNorm(scale_init=ramp, bias_init=ramp, **axes)
    found = initial(instance, 100 + X)
    assert_equal(found, initial(batch))
    assert ("count" in found["batch_stats"]) == ("momentum" in fields)


@pytest.mark.sampled
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.8, None])
def test_instance_norm_tracks_as_pytorch_does(momentum: float | None, unbiased: bool) -> None:
    """Tracks the average over examples of means and (un)biased variances; outputs do not change."""
    layer = jnl.InstanceNorm(**TRACKED, momentum=momentum, unbiased=unbiased)
    plain = layer.clone(track_running_stats=False)
    variables = initial(layer)
    mean, var = np.zeros(32), np.ones(32)
    for seen, x in enumerate(BATCHES):
        params = {"params": variables["params"]}
        y, variables = compiled(partial(step, layer), variables, x)
        assert_equal(y, compiled(plain.apply, params, x))
        old = seen / (seen + 1) if momentum is None else momentum
        exact = np.asarray(x, float)
        mean = old * mean + (1 - old) * exact.mean((1, 2)).mean(0)
        var = old * var + (1 - old) * exact.var((1, 2), ddof=int(unbiased)).mean(0)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    if momentum is None:
        np.testing.assert_array_equal(stats["count"], np.full(32, 3))


def test_instance_norm_evaluates_as_batch_norm() -> None:
    """Evaluation uses the running statistics, leaves them alone and ignores the mask."""
    layer = jnl.InstanceNorm(**TRACKED, epsilon=1e-3)
    _, variables = compiled(partial(step, layer), initial(layer), 2 * X + 1)

    def evaluated(layer: nn.Module, **call: Any) -> Any:
        return compiled(partial(layer.apply, mutable=["batch_stats"], **call), variables, X)

    y, same = evaluated(layer, use_running_average=True, mask=X > 0)
    assert_equal(same, {"batch_stats": variables["batch_stats"]})
    for other in (jnl.BatchNorm(epsilon=1e-3), layer):
        assert_equal(y, evaluated(other.clone(use_running_average=True))[0])


def test_instance_norm_masked() -> None:
    """Masked elements enter no statistic, and fully masked examples enter no average."""
    mask = jnp.stack([jnp.arange(4) < n for n in (4, 2, 0)])[:, :, None, None]
    x = jnp.where(mask, X, jnp.nan)
    layer = jnl.InstanceNorm(**TRACKED, momentum=0.0)
    y, updated = compiled(partial(step, layer), initial(layer), x, mask)
    counted = [np.asarray(X[0]), np.asarray(X[1, :2])]
    mean = np.mean([c.mean((0, 1)) for c in counted], 0)
    var = np.mean([c.var((0, 1)) for c in counted], 0)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(y).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_instance_norm_keeps_float32_state(dtype: str) -> None:
    """The state of a half-precision layer is float32, unless it is requested in ``param_dtype``."""
    half = jnp.dtype(dtype)
    for force, kept in ((True, jnp.dtype("float32")), (False, half)):
        layer = jnl.InstanceNorm(
            **TRACKED, dtype=half, param_dtype=half, force_float32_reductions=force
        )
        y, updated = jax.eval_shape(partial(step, layer), initial(layer), X.astype(half))
        assert y.dtype == half
        assert {leaf.dtype for leaf in jax.tree.leaves(updated["batch_stats"])} == {kept}


@pytest.mark.parametrize("at", [(True, True), (False, True), (None, None)], ids=str)
def test_instance_norm_wants_the_mode_once(at: tuple[bool | None, bool | None]) -> None:
    """``use_running_average`` in both field and call, or in neither, raises batch norm's error."""
    field, argument = at

    def message(norm: Any) -> str:
        layer = norm(use_running_average=field, track_running_stats=True)
        with pytest.raises(ValueError, match="use_running_average") as raised:
            layer.init(KEY, X, use_running_average=argument)
        return str(raised.value)

    assert message(jnl.InstanceNorm) == message(jnl.BatchNorm)


def test_instance_norm_without_statistics_does_not_read_the_mode() -> None:
    """Without running statistics, the mode may be given twice or not at all."""
    layer = jnl.InstanceNorm(use_running_average=True)
    shapes = jax.eval_shape(lambda x: layer.init(KEY, x, use_running_average=False), X)
    assert set(shapes) == {"params"}


# --- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"axis": (1, -1)}, {"axis": 1, "use_bias": False}], ids=str)
def test_batch_norm_without_running_statistics(fields: Fields) -> None:
    """There are no ``batch_stats``; every mode, or none, uses the batch's own statistics as in training."""
    layer = jnl.BatchNorm(**UNTRACKED, **fields, epsilon=1e-3)
    tracking = layer.clone(track_running_stats=True)
    modes: list[Fields] = [{}, *({"use_running_average": mode} for mode in (True, False, None))]

    def of(x: jax.Array) -> Any:
        variables = layer.init(KEY, x)
        fresh = tracking.init(KEY, x, use_running_average=False)
        ours = [layer.apply(variables, x, **mode, mutable=["batch_stats"]) for mode in modes]
        return variables, fresh["params"], step(tracking, fresh, x)[0], ours

    variables, params, expected, ours = compiled(of, X)
    assert_equal(variables, {"params": params})
    for y, updated in ours:
        assert_close(y, expected, 1e-6)
        assert updated == {}


def test_batch_norm_without_running_statistics_reads_the_mask() -> None:
    """The mask also matters in evaluation, since the batch's own statistics are used."""
    layer = jnl.BatchNorm(**UNTRACKED)
    mask = (jnp.arange(3) < 2).reshape(3, 1, 1, 1)

    def of(variables: Any, x: jax.Array) -> Any:
        y: Any = layer.apply(variables, x, use_running_average=True, mask=mask)
        return y[:2], layer.apply(variables, x[:2])

    assert_close(*compiled(of, initial(layer), X), tolerance=1e-5)


def test_batch_norm_without_running_statistics_over_devices() -> None:
    """``axis_name`` works in every mode: two halves on two devices match the whole batch."""
    layer = jnl.BatchNorm(**UNTRACKED, axis_name="devices")

    def of(variables: Any, halves: jax.Array) -> Any:
        y: Any = jax.vmap(lambda x: layer.apply(variables, x), axis_name="devices")(halves)
        whole: Any = layer.clone(axis_name=None).apply(variables, halves.reshape(-1, *X.shape[1:]))
        return y.reshape(whole.shape), whole

    assert_close(*compiled(of, initial(layer), jnp.stack([X, 5 - X])), tolerance=1e-5)


@pytest.mark.parametrize("norm", [jnl.BatchNorm, jnl.InstanceNorm])
def test_random_initial_values_do_not_depend_on_tracking(norm: Any) -> None:
    """The same key gives the same scale and bias with or without running statistics."""
    with_, without = (
        initial(norm(**RANDOM, track_running_stats=tracked))["params"] for tracked in (True, False)
    )
    assert_equal(with_, without)


# --- others --------------------------------------------------------------------------------------


def test_group_norm_channels_first() -> None:
    """``feature_axes=1`` is the same norm with the axes in another order."""
    last = jnl.GroupNorm(num_groups=4, **inits("GroupNorm"))
    first = last.clone(feature_axes=1)

    def both(x: jax.Array) -> Any:
        y, variables = first.init_with_output(KEY, jnp.moveaxis(x, -1, 1))
        return last.init_with_output(KEY, x), (jnp.moveaxis(y, 1, -1), variables)

    assert_close(*compiled(both, X), tolerance=1e-5)


def test_rms_norm_with_an_offset() -> None:
    """``scale_offset=1`` with zero scales is Gemma's 1 + scale, and equals the norm with scales of 1."""
    plain, gemma = jnl.RMSNorm(), jnl.RMSNorm(scale_init=nn.initializers.zeros, scale_offset=1.0)
    scale = ramp(KEY, (32,))

    def of(x: jax.Array) -> Any:
        moved: Any = gemma.apply({"params": {"scale": scale}}, x)
        return gemma.init_with_output(KEY, x), plain.init_with_output(KEY, x)[0], moved

    (y, variables), expected, moved = compiled(of, X)
    assert not variables["params"]["scale"].any()
    assert_equal(y, expected)
    assert_close(moved, expected * (1 + scale[None, None, None]), 1e-5)


def test_local_response_norm_has_no_variables_and_hands_on_its_fields() -> None:
    """There are no collections, and every field enters the formula."""
    layer = jnl.LocalResponseNorm(
        size=3, alpha=0.5, beta=2.0, k=1.5, dtype=jnp.bfloat16, feature_axes=1
    )
    y, variables = layer.init_with_output(KEY, X)
    assert variables == {} and y.dtype == jnp.bfloat16
    padded = np.pad(np.square(X), [(0, 0), (1, 1), (0, 0), (0, 0)])
    energy = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    expected = X / (1.5 + 0.5 / 3 * energy) ** 2.0
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
