"""Well-known properties of these norms, which need no reference implementation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import linen as jnl
from tests.cases import draw

pytestmark = pytest.mark.usefixtures("users_promotion")


def images(seed: int = 0, shape: tuple[int, ...] = (4, 6, 5, 8)) -> Any:
    """Random images with a nonzero mean."""
    return draw(np.random.default_rng(seed), shape, "float32", 0.5, 1.5)


def close(a: Any, b: Any, tolerance: float = 2e-5) -> None:
    """Compares with a small tolerance."""
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_act_norm_of_the_first_batch_is_normalized_and_can_be_inverted() -> None:
    """The output has mean 0 and variance 1; the log-determinant is that of the Jacobian."""
    x = images()
    given = jn.init_act_norm(x)
    y, log_det = jn.act_norm(x, *given)
    close(y.mean((0, 1, 2)), 0, 1e-5)
    close(y.std((0, 1, 2)), 1)
    close(jn.act_norm_inverse(y, *given), x)
    small = x[:1, :2, :2, :2]
    given = tuple(a[:2] for a in given)
    jacobian = jax.jacobian(lambda v: jn.act_norm(v.reshape(small.shape), *given)[0].ravel())
    _, expected = np.linalg.slogdet(np.float64(jacobian(small.ravel())))
    close(jn.act_norm(small, *given)[1], expected)
    assert log_det.shape == ()


def test_ada_layer_norm_of_zeros_is_layer_norm() -> None:
    """With zero scale and shift, where training starts, adaptive layer norm is layer norm."""
    x, zeros = images(), jnp.zeros((4, 8))
    close(jn.ada_layer_norm(x, zeros, zeros), jn.layer_norm(x))


def test_adain_of_its_own_style_is_the_content() -> None:
    """Its own style leaves an image unchanged; another style gives it that mean and deviation."""
    x, style = images(), 3 * images(1, (4, 7, 3, 8)) + 2
    close(jn.adain(x, x), x)
    y = jn.adain(x, style, epsilon=0.0)
    close(y.mean((1, 2)), style.mean((1, 2)), 1e-4)
    close(y.std((1, 2)), style.std((1, 2)), 1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_adapted_is_between_training_and_evaluation(share: float) -> None:
    """Statistics are mixed with the given share of running statistics, which are not read at a share of 0."""
    x = images()
    stats = jn.RunningStats(jnp.full(8, 0.1), jnp.full(8, 4.0))
    m = jn.moments(x, (0, 1, 2))
    mean, var = (share * a + (1 - share) * b.ravel() for a, b in zip(stats[:2], m[:2], strict=True))
    expected = (x - mean) / np.sqrt(var + 1e-5)
    close(jn.batch_norm_adapted(x, stats, running_share=share), expected)
    if share == 0:
        close(jn.batch_norm_adapted(x, stats, running_share=share), jn.batch_norm(x, stats)[0])
        unread = jn.RunningStats(stats.mean * jnp.nan, stats.var * jnp.nan)
        assert np.isfinite(jn.batch_norm_adapted(x, unread, running_share=share)).all()
    if share == 1:
        inference = jn.batch_norm_inference(x, stats)
        close(jn.batch_norm_adapted(x, stats, running_share=share), inference)


def test_batch_renorm_within_limits_is_evaluation_and_without_is_batch_norm() -> None:
    """Without correction y equals batch norm; unclipped, its value matches evaluation."""
    x = images()
    stats = jn.RunningStats(jnp.full(8, 0.2), jnp.full(8, 2.0))
    at: Any = {"epsilon": 1e-3}
    y, _ = jn.batch_renorm(x, stats, rmax=1.0, dmax=0.0, **at)
    close(y, jn.batch_norm(x, stats, **at)[0])

    def loss(f: Any) -> Any:
        return jax.value_and_grad(lambda x: (f(x) * images(2)).sum())(x)

    value, slope = loss(lambda x: jn.batch_renorm(x, stats, rmax=1e6, dmax=1e6, **at)[0])
    close(jn.batch_renorm_inference(x, stats), (np.float64(x) - 0.2) / np.sqrt(2.0 + 1e-3))
    expected, _ = loss(lambda x: jn.batch_renorm_inference(x, stats))
    close(value, expected, 1e-4)
    r = np.sqrt((x.var((0, 1, 2)) + 1e-3) / (2.0 + 1e-3))
    _, of_batch_norm = loss(lambda x: jn.batch_norm(x, stats, **at)[0] * r)
    close(slope, of_batch_norm, 1e-4)


def test_derf_and_dynamic_tanh_have_no_statistics() -> None:
    """The Jacobian is diagonal; without a shift both are odd, with slopes 2αγ/√π and αγ at 0."""
    for f, slope in ((jn.derf, 2 * 0.7 / np.sqrt(np.pi)), (jn.dynamic_tanh, 0.7)):
        jacobian = jax.jacobian(lambda x, f=f: f(x, 0.7))(images(0, (6,)))
        assert np.count_nonzero(jacobian - np.diag(np.diag(jacobian))) == 0
        close(f(-images(), 0.7), -f(images(), 0.7))
        close(jax.grad(lambda x, f=f: f(x, 0.7).sum())(jnp.zeros(1)), slope)


def test_domains_keep_to_themselves() -> None:
    """A step with a traced domain index updates that row like batch norm, and no other row."""
    stats = jn.init_running_stats((3, 8))

    @jax.jit
    def step(stats: jn.RunningStats, domain: Any, x: Any) -> jn.RunningStats:
        own = jn.stats_of_domain(stats, domain)
        return jn.with_stats_of_domain(stats, domain, jn.batch_norm(x, own)[1])

    for domain in (1, 2, 1):
        stats = step(stats, domain, images(domain))
    once = jn.init_running_stats(8)
    twice = jn.batch_norm(images(1), jn.batch_norm(images(1), once)[1])[1]
    close(stats.mean, np.stack([once.mean, twice.mean, jn.batch_norm(images(2), once)[1].mean]))


def test_evo_norm_b_evaluates_as_it_trains_where_the_variance_is_the_same() -> None:
    """If the running variance equals the batch variance, evaluation gives the same result as training."""
    x = images()
    y, stats = jn.evo_norm_b0(x, jn.init_running_stats(8), jnp.ones(8), momentum=0.0)
    close(jn.evo_norm_b0_inference(x, stats, jnp.ones(8)), y)
    close(jn.evo_norm_b1_inference(x, stats), jn.evo_norm_b1(x, stats)[0])
    close(jn.evo_norm_b2_inference(x, stats), jn.evo_norm_b2(x, stats)[0])


def test_evo_norm_s0_of_a_steep_line_is_relu_by_deviation() -> None:
    """With a steep slope, sigmoid(v x) is a step."""
    x = images()
    y = jn.evo_norm_s0(x, jnp.full(8, 1e4), num_groups=2)
    m = jn.moments(x.reshape(4, 6, 5, 2, 4), (1, 2, 4))
    std = np.sqrt(np.repeat(m.var[..., 0], 4, -1) + 1e-5)
    close(y, np.maximum(x, 0) / std, 1e-4)


def test_filter_response_norm_of_one_position_is_a_sign() -> None:
    """The result is x / |x|, which is why the paper learns ε in this case."""
    x = images(0, (4, 1, 1, 8))
    close(jn.filter_response_norm(x, epsilon=1e-12), np.sign(x))
    traced = jax.grad(lambda e: jn.filter_response_norm(x, epsilon=e).sum())(jnp.float32(0.1))
    close(traced, (-0.5 * x * (x**2 + 0.1) ** -1.5).sum(), 1e-4)


def test_global_response_norm_begins_as_the_identity() -> None:
    """Scale and bias 0 give the identity; channel shares have mean 1; an empty channel has a gradient."""
    x = images()
    zeros = jnp.zeros(8)
    assert np.array_equal(jn.global_response_norm(x, zeros, zeros), x)
    share = jn.global_response_norm(x, epsilon=0.0) / x - 1
    close(share.mean(-1), 1, 1e-4)
    x[..., 3] = 0
    assert np.isfinite(jax.grad(lambda x: jn.global_response_norm(x).sum())(x)).all()


def test_iterative_whitening_has_no_correlation() -> None:
    """After enough steps the covariance of the result is the identity; after few it is close."""
    x = images(0, (16, 9, 9, 8)) @ np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)

    def off(steps: int) -> float:
        y, _ = jn.iterative_whitening(x, jn.init_whitening(8), steps=steps, epsilon=1e-7)
        rows = np.float64(y).reshape(-1, 8)
        return float(np.abs(rows.T @ rows / len(rows) - np.eye(8)).max())

    assert off(5) > off(10) > off(20)
    assert off(20) < 1e-3
    y, stats = jn.iterative_whitening(x, jn.init_whitening(8), momentum=0.0)
    close(jn.iterative_whitening_inference(x, stats), y)
    mean, matrix = (np.asarray(a, np.float64) for a in stats)
    close(y, (np.asarray(x, np.float64) - mean) @ matrix)


def test_iterative_whitening_of_float32_among_float64() -> None:
    """Where float64 is enabled, nothing of a float32 x is computed or kept in it."""
    with jax.enable_x64(True):
        x = jnp.asarray(images(), jnp.float32)
        stats = jn.init_whitening(8)._replace(mean=jnp.zeros(8, jnp.float32))
        step: Any = jax.make_jaxpr(lambda x: jn.iterative_whitening(x, stats))(x)
        assert {a.dtype.name for a in step.out_avals} == {"float32"}
        assert "f64[8,8]" not in str(step)


@pytest.mark.parametrize("p", [1, 2, 3.5, np.inf])
def test_lp_normalize_has_length_1_at_any_size(p: float) -> None:
    """Zeros stay zero with a finite gradient; lengths from 1e-11 to 1e30 are in range."""
    x = images(0, (5, 7))
    for size in (1e-11, 1.0, 1e30):
        y = np.float64(jn.lp_normalize(np.float32(size) * x, p=p))
        close(np.linalg.norm(y, p, axis=-1), 1)
    zeros = jnp.zeros((2, 3))
    assert np.array_equal(jn.lp_normalize(zeros, p=p), zeros)
    assert np.isfinite(jax.grad(lambda x: jn.lp_normalize(x, p=p).sum())(zeros)).all()


@pytest.mark.parametrize("masked", [False, True])
def test_groups_of_channels_are_whitened_separately(masked: bool) -> None:
    """Outputs, statistics, gradients and evaluation match those of each group alone."""
    x, mask = images(), np.indices((4, 6, 5, 1)).sum(0) % 3 > 0 if masked else None
    initial = jn.init_whitening(8, num_groups=2)
    assert initial.matrix.shape == (2, 4, 4)

    @jax.jit
    def run(x: Any, stats: Any) -> Any:
        def loss(x: Any) -> Any:
            y, updated = jn.iterative_whitening(x, stats, mask=mask)
            return (y * images(1)[..., : x.shape[-1]] ** 2).sum(), (y, updated)

        (_, (y, updated)), dx = jax.value_and_grad(loss, has_aux=True)(x)
        return y, dx, jn.iterative_whitening_inference(x, updated, mask=mask), updated

    *arrays, stats = run(jnp.asarray(x), initial)
    halves = [run(jnp.asarray(half), jn.init_whitening(4)) for half in np.split(x, 2, -1)]
    for i in (0, 2):
        close(arrays[i], np.concatenate([half[i] for half in halves], -1))
    close(arrays[1][..., :4], halves[0][1], 1e-4)
    close(stats.mean, np.concatenate([half[-1].mean for half in halves]))
    close(stats.matrix, np.stack([half[-1].matrix for half in halves]))


def test_complex_whitening() -> None:
    """Groups of a real and an imaginary part give the batch norm of Trabelsi et al. (2018)."""
    rng = np.random.default_rng(0)
    mixed = np.array([[2, 1], [0, 0.5]], np.float32)
    parts = draw(rng, (64, 3, 2), "float32", 1.0) @ mixed
    stats = jn.init_whitening(6, num_groups=3)
    options: Any = {"steps": 12, "epsilon": 1e-4, "momentum": 0.0}
    y, stats = jn.iterative_whitening(parts.reshape(64, 6), stats, **options)

    real, imaginary = np.moveaxis(np.float64(parts) - np.float64(parts).mean(0), -1, 0)
    rr, ii = ((a**2).mean(0) + 1e-4 for a in (real, imaginary))
    ri = (real * imaginary).mean(0)
    s = np.sqrt(rr * ii - ri**2)  # the inverse root of a 2×2 matrix in closed form
    t = s * np.sqrt(rr + ii + 2 * s)
    expected = (ii + s) * real - ri * imaginary, (rr + s) * imaginary - ri * real
    close(y, (np.stack(expected, -1) / t[:, None]).reshape(64, 6), 1e-4)
    close(jn.iterative_whitening_inference(parts.reshape(64, 6), stats), y)


def test_groups_of_channels_are_whitened_on_devices() -> None:
    """Devices that share an axis whiten groups of channels as one device does."""
    x, initial = images(), jn.init_whitening(8, num_groups=4)
    step = jax.vmap(
        partial(jn.iterative_whitening, axis_name="devices"), (0, None), axis_name="devices"
    )
    y, stats = jax.jit(step)(x.reshape(2, 2, *x.shape[1:]), initial)
    whole, expected = jax.jit(jn.iterative_whitening)(x, initial)
    close(y.reshape(x.shape), whole)
    for ours, book in zip(stats, expected, strict=True):
        close(ours[1], book)


def test_mean_only_batch_norm_leaves_the_variance() -> None:
    """The variance is unchanged, and evaluation uses the running mean."""
    x = images()
    y, stats = jn.mean_only_batch_norm(x, jn.init_running_stats(8), momentum=0.0)
    close(y.var((0, 1, 2)), x.var((0, 1, 2)))
    close(jn.mean_only_batch_norm_inference(x, stats), y)


def test_modulate_of_a_table_of_one_class_is_the_affine() -> None:
    """Conditional batch norm with a single class is batch norm."""
    x, rng = images(), np.random.default_rng(3)
    scale, bias = rng.normal(size=(2, 1, 8)).astype(np.float32)
    labels = np.zeros(4, int)
    y, _ = jn.batch_norm(x, jn.init_running_stats(8))
    expected, _ = jn.batch_norm(x, jn.init_running_stats(8), scale[0], bias[0])
    close(jn.modulate(y, scale[labels], bias[labels]), expected)


def test_qk_norm_bounds_the_logits() -> None:
    """Logits are at most d · max |g_q g_k|, however large the queries and keys are."""
    query, key = 1e4 * images(0, (10, 4, 16)), 1e4 * images(1, (12, 4, 16))
    a, b = jnp.linspace(0.5, 2, 16), jnp.linspace(1, 3, 16)
    q, k = jn.qk_norm(query, key, a, b)
    assert np.abs(np.einsum("qhd,khd->hqk", q, k)).max() <= 16 * 2 * 3


def test_qk_norm_of_all_heads() -> None:
    """As in OLMo 2, it is the norm of the projections before they are split into heads."""
    query, key = images(0, (2, 5, 6, 8)), images(1, (2, 5, 2, 8))  # grouped-query attention
    scales = jnp.linspace(0.5, 2, 48), jnp.linspace(1, 3, 16)
    split = [s.reshape(-1, 8) for s in scales]
    found = jn.qk_norm(query, key, *split, reduction_axes=(-2, -1), feature_axes=(-2, -1))
    for y, x, scale in zip(found, (query, key), scales, strict=True):
        close(y.reshape(2, 5, -1), jn.rms_norm(x.reshape(2, 5, -1), scale))


def test_qk_norm_for_each_head() -> None:
    """As in Chameleon, it is layer norm of each head, with the head's own scale and bias."""
    query, scale, bias = images(0, (2, 5, 3, 8)), images(1, (3, 8)), images(2, (3, 8))
    options: dict[str, Any] = {"kind": "layer", "feature_axes": (-2, -1), "epsilon": 1e-5}
    q, _ = jn.qk_norm(query, query, scale, None, bias, **options)
    for h in range(3):
        expected = jn.layer_norm(query[:, :, h], scale[h], bias[h], epsilon=1e-5)
        close(q[:, :, h], expected)


def test_qk_norm_with_a_temperature() -> None:
    """The logits are cosines times the temperature of each head, as in Swin V2, or one for all."""
    query, key = images(0, (5, 3, 8)), images(1, (7, 3, 8))
    temperature = jnp.array([1.0, 4.0, 10.0])
    q, k = jn.qk_norm(query, key, temperature, kind="l2", feature_axes=-2)
    dots = np.einsum("qhd,khd->hqk", query, key)
    lengths = (np.linalg.norm(a, axis=-1).T for a in (query, key))
    cosines = dots / np.einsum("hq,hk->hqk", *lengths)
    close(jnp.einsum("qhd,khd->hqk", q, k), cosines * temperature[:, None, None])
    one, _ = jn.qk_norm(query, key, temperature[1], kind="l2", feature_axes=())
    close(one[:, 1], q[:, 1])


def test_scale_norm_is_rms_norm_with_one_scale() -> None:
    """The scale is g/√d; pixel norm is RMS norm without a scale."""
    x = images()
    rms = jn.rms_norm(x, jnp.full(8, 3 / np.sqrt(8)), epsilon=1e-8)
    close(jn.scale_norm(x, 3.0), rms)
    close(jn.pixel_norm(x), jn.rms_norm(x, epsilon=1e-8))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_switchable_norm_with_all_weight_on_one_is_that_one(which: int) -> None:
    """Instance norm, layer norm over the image and batch norm are special cases, also in evaluation."""
    x = images()
    weights = 200.0 * jnp.eye(3)[which]
    y, stats = jn.switchable_norm(x, jn.init_running_stats(8), weights, weights, momentum=0.0)
    expected = (
        jn.instance_norm(x, epsilon=1e-5),
        jn.layer_norm(x, reduction_axes=(1, 2, 3), epsilon=1e-5),
        jn.batch_norm(x, jn.init_running_stats(8))[0],
    )[which]
    close(y, expected)
    close(jn.switchable_norm_inference(x, stats, weights, weights), expected)


def test_switchable_norm_of_constant_input_is_zero() -> None:
    """The weighted mean of three equal means is that mean exactly, for any weights."""
    norm = jax.jit(partial(jn.switchable_norm, epsilon=1e-30))
    x, stats = jnp.full((2, 3, 3, 4), 3.0), jn.init_running_stats(4)
    for weights in np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32):
        np.testing.assert_array_equal(norm(x, stats, weights, weights)[0], 0)


def test_no_epsilon_and_nothing_to_divide_by() -> None:
    """Zeros and constant channels with epsilon 0 give finite values and gradients."""
    stats = jn.init_running_stats(4)
    norms: dict[str, Any] = {
        "adain": lambda x: jn.adain(x, 2 * x, epsilon=0.0),
        "evo_b0": lambda x: jn.evo_norm_b0(x, stats, jnp.ones(4), epsilon=0.0)[0],
        "evo_s0": lambda x: jn.evo_norm_s0(x, jnp.ones(4), num_groups=2, epsilon=0.0),
        "frn": lambda x: jn.filter_response_norm(x, epsilon=0.0),
        "grn": lambda x: jn.global_response_norm(x, epsilon=0.0),
        "lp": lambda x: jn.lp_normalize(x, epsilon=0.0),
        "renorm": lambda x: jn.batch_renorm(x, stats, epsilon=0.0)[0],
    }

    @jax.jit
    def all_of(x: Any) -> Any:
        loss = lambda norm: lambda x: (norm(x) * images(1, x.shape)).sum()  # noqa: E731
        return {name: jax.value_and_grad(loss(norm))(x) for name, norm in norms.items()}

    for x in (jnp.zeros((3, 2, 4)), jnp.ones((3, 2, 4)), images(0, (3, 1, 4))):
        for name, (y, slope) in all_of(x).items():
            assert np.isfinite(y) and np.isfinite(slope).all(), name


def test_batch_renorm_moves_nothing_where_nothing_is_to_move() -> None:
    """With a momentum of 1, or a full mask, small variances are unchanged bit for bit."""
    x = images()
    stats = jn.RunningStats(jnp.zeros(8), jnp.geomspace(1e-10, 1e3, 8))
    nothing: Any = {"momentum": 1.0}, {"mask": jnp.zeros((4, 1, 1, 1), bool)}
    for options in nothing:
        y, same = jn.batch_renorm(x, stats, **options)
        assert np.array_equal(same.mean, stats.mean) and np.array_equal(same.var, stats.var)
        assert np.isfinite(y).all()


def test_spade_reads_the_pixel_that_pytorch_reads() -> None:
    """From a map twice as large, SPADE reads every other pixel, starting with the first."""
    layer: Any = jnl.Spade(map_channels=1, hidden=1, kernel_size=1)
    x, drawn = images(0, (1, 4, 4, 2)), np.arange(64.0, dtype=np.float32).reshape(1, 8, 8, 1)
    variables = layer.init(jax.random.key(0), x, drawn)
    params = jax.tree.map(jnp.ones_like, variables["params"])
    y = layer.apply({"params": params}, x, drawn)
    small = layer.apply({"params": params}, x, drawn[:, ::2, ::2])
    assert np.array_equal(y, small)
