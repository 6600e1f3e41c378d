"""`jaxnorm.linen.BatchNorm` behaves like `flax.linen.BatchNorm` in everything that a model can see."""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, serialization

from jaxnorm import linen as jnl

KEY = jax.random.key(7)


def ramp(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """An initializer other than 0 and 1 that compiles faster than a random one."""
    del key
    return jnp.asarray(np.linspace(0.5, 2.0, math.prod(shape)).reshape(shape), dtype)


Fields: TypeAlias = dict[str, Any]
RAMP: Fields = {"bias_init": ramp, "scale_init": ramp}
RANDOM: Fields = {
    "bias_init": nn.initializers.normal(),
    "scale_init": nn.initializers.uniform(2.0),
}
AXES = [-1, 1, (1, 2), (0, -1), (2, 1), ()]
FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]


def normal(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    """Well-scaled activations, for which Flax's fast variance is accurate."""
    values = jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    return (0.3 + 1.5 * values).astype(dtype)


X = normal((6, 5, 4, 3))
COTANGENT = normal((6, 5, 4, 4), seed=1)


@contextmanager
def loose() -> Iterator[None]:
    """The implicit promotion that Flax needs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def train(
    layer: nn.Module, variables: Any, x: jax.Array, **options: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns output and updated ``batch_stats``; our own layer runs under conftest's strict promotion."""

    def step() -> Any:
        return layer.apply(variables, x, **options, mutable=["batch_stats"])

    if isinstance(layer, jnl.BatchNorm):
        y, updated = step()
    else:
        with loose():
            y, updated = step()
    return y, updated["batch_stats"]


def initial(layer: nn.Module, x: jax.Array, **options: Any) -> Any:
    """Initial variables, compiled because it is faster."""
    with loose():
        return jax.jit(lambda x: layer.init(KEY, x, **options))(x)


def assert_close(ours: Any, theirs: Any, tolerance: float = 2e-5) -> None:
    """Compares the structure, shapes, dtypes and (approximate) values of two trees."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        wide = complex if jnp.iscomplexobj(a) else float
        np.testing.assert_allclose(
            np.asarray(a, wide), np.asarray(b, wide), rtol=tolerance, atol=tolerance
        )


def assert_equal(ours: Any, theirs: Any) -> None:
    """Compares two trees bit for bit."""
    assert_close(ours, theirs, 0.0)


def error(function: Any) -> tuple[type, str]:
    """The type and text of the error that ``function`` raises."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the caller compares type and text
        function()
    return raised.type, str(raised.value)


# --- the class -----------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [lambda c: c, lambda c: c.__call__], ids=["class", "call"])
def test_signature_begins_with_that_of_flax(of: Any) -> None:
    """Flax's arguments come in Flax's order with Flax's defaults; ours come after and are keyword-only."""
    ours = inspect.signature(of(jnl.BatchNorm)).parameters
    theirs = inspect.signature(of(nn.BatchNorm)).parameters
    assert {n: (p.default, p.kind) for n, p in theirs.items()} == {
        n: (ours[n].default, ours[n].kind) for n in theirs
    }
    positional = [n for n, p in ours.items() if p.kind is not p.KEYWORD_ONLY]
    assert positional == [n for n, p in theirs.items() if p.kind is not p.KEYWORD_ONLY]


def test_fields_are_those_of_flax_and_ours() -> None:
    """Our additional fields are exactly those documented, so new ones are added deliberately."""
    ours, theirs = (inspect.signature(c).parameters for c in (jnl.BatchNorm, nn.BatchNorm))
    assert set(ours) - set(theirs) == {
        "unbiased",
        "track_running_stats",
        "virtual_batch_size",
        "activation",
        "save_as",
    }
    assert jnl.BatchNorm.__name__ == "BatchNorm"


def test_construction_by_position() -> None:
    """Each positional argument sets the same field as in Flax."""
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    values: tuple[Any, ...] = (
        True,
        1,
        0.9,
        1e-3,
        jnp.bfloat16,
        jnp.float16,
        False,
        False,
        zeros,
        ones,
        "i",
    )
    values += (((0, 1),), False, False)
    names = list(inspect.signature(nn.BatchNorm).parameters)[: len(values)]
    ours, theirs = jnl.BatchNorm(*values), nn.BatchNorm(*values)
    assert [getattr(ours, n) for n in names] == [getattr(theirs, n) for n in names] == list(values)


# --- variables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        *({"axis": axis, **RANDOM} for axis in AXES),
        {"use_bias": False, **RANDOM},
        {"use_scale": False, **RANDOM},
        {"use_scale": False, "use_bias": False},
        {"param_dtype": jnp.bfloat16, **RANDOM},
        {"param_dtype": jnp.float16, "force_float32_reductions": False},
    ],
    ids=[*map(str, AXES), "scale", "bias", "neither", "bf16", "f16-state"],
)
def test_initial_variables_are_those_of_flax(fields: Fields) -> None:
    """Collections, names, shapes and dtypes match Flax's, and so do values for the same key."""
    ours, theirs = (
        initial(norm(**fields), X, use_running_average=False)
        for norm in (jnl.BatchNorm, nn.BatchNorm)
    )
    assert_equal(ours, theirs)


def test_automatic_names_and_initial_values_in_a_model() -> None:
    """Layers are numbered BatchNorm_0, BatchNorm_1 and use the same keys as Flax's."""

    class Model(nn.Module):
        norm: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.norm(True, **RANDOM)(nn.Dense(4)(self.norm(True, **RANDOM)(x)))

    ours, theirs = Model(jnl.BatchNorm).init(KEY, X), Model(nn.BatchNorm).init(KEY, X)
    assert set(ours["batch_stats"]) == {"BatchNorm_0", "BatchNorm_1"}
    assert_equal(ours, theirs)


@pytest.mark.parametrize("evaluating", [True, False])
def test_init_leaves_the_running_statistics_alone(evaluating: bool) -> None:
    """In either mode, a dummy batch does not enter the statistics and does not need ``axis_name``."""
    layer = jnl.BatchNorm(axis_name="unbound", axis_index_groups=[[0, 1]])
    y, variables = layer.init_with_output(KEY, 100 + X, evaluating)
    fresh = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    assert_equal(variables["batch_stats"], fresh)
    assert y.shape == X.shape and abs(float(y.mean()) - (100.3 if evaluating else 0)) < 0.2


def test_init_of_a_module_called_twice() -> None:
    """A layer that is called twice is initialized once, with ``axis_name`` unbound."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            norm = jnl.BatchNorm(False, axis_name="unbound")
            return norm(norm(x))

    variables = Twice().init(KEY, 100 + X)
    assert_equal(
        variables["batch_stats"], {"BatchNorm_0": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    )


def test_the_statistics_of_a_call_during_init_are_used_by_the_next() -> None:
    """``mutable=True`` in ``apply`` is not an init, so the statistics are updated."""
    layer = jnl.BatchNorm(False, momentum=0.0)
    updated: Any = layer.apply(layer.init(KEY, X), X, mutable=True)[1]
    np.testing.assert_allclose(updated["batch_stats"]["mean"], X.mean((0, 1, 2)), atol=1e-6)


# --- results -------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("evaluating", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_answers_and_gradients_are_those_of_flax(axis: Any, evaluating: bool) -> None:
    """Outputs, updated statistics and the gradients of input, scale and bias match Flax."""
    fields: Fields = {"axis": axis, "momentum": 0.8, "epsilon": 1e-3, **RAMP}
    ours, theirs = jnl.BatchNorm(evaluating, **fields), nn.BatchNorm(evaluating, **fields)
    variables = initial(ours, X)
    _, stats = train(ours, variables, 2 * X)  # statistics other than 0 and 1

    def loss(layer: Any, params: Any, x: jax.Array) -> Any:
        out = train(layer, {"params": params, "batch_stats": stats}, x)
        return (out[0] * COTANGENT[..., :3]).sum() / 10, out

    def by_all(layer: Any) -> Any:
        gradients = jax.value_and_grad(partial(loss, layer), (0, 1), has_aux=True)
        return jax.jit(gradients)(variables["params"], X)

    assert_close(by_all(ours), by_all(theirs), 5e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16], ids=["p32", "pb16"])
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16], ids=["none", "f32", "bf16"])
@pytest.mark.parametrize("x_dtype", [*FLOATS, jnp.int32], ids=["x32", "xb16", "x16", "xint"])
def test_result_dtype_is_that_of_flax(x_dtype: Any, dtype: Any, param_dtype: Any) -> None:
    """The result has ``dtype``, or the promoted dtype of input and existing parameters, in both modes."""
    x = jax.ShapeDtypeStruct((4, 3), x_dtype)
    for use_scale, use_bias, evaluating in [(1, 1, 0), (1, 0, 1), (0, 1, 0), (0, 0, 1)]:
        options: Fields = {"use_scale": bool(use_scale), "use_bias": bool(use_bias)}
        fields: Fields = {"dtype": dtype, "param_dtype": param_dtype, **options}

        def outcome(norm: Any, fields: Any = fields, evaluating: Any = evaluating) -> Any:
            layer = norm(bool(evaluating), **fields)
            variables = jax.eval_shape(layer.init, KEY, x)
            return jax.eval_shape(lambda v, x: layer.apply(v, x, mutable=True), variables, x)

        ours = outcome(jnl.BatchNorm)
        with loose():
            theirs = outcome(nn.BatchNorm)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
            lambda a: (a.shape, a.dtype), theirs
        )


@pytest.mark.parametrize("evaluating", [False, True], ids=["train", "eval"])
@pytest.mark.parametrize(("x_dtype", "ulp"), [(jnp.bfloat16, 2**-7), (jnp.float16, 2**-10)])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32], ids=["none", "bf16", "f32"])
def test_half_precision_answers_are_those_of_flax(
    x_dtype: Any, ulp: float, dtype: Any, evaluating: bool
) -> None:
    """For 16-bit input, results match Flax to the last bit of the coarser dtype; statistics are float32."""
    x = normal((64, 6, 3), x_dtype)
    fields: Fields = {"dtype": dtype, "param_dtype": x_dtype, **RAMP}
    ours, theirs = jnl.BatchNorm(evaluating, **fields), nn.BatchNorm(evaluating, **fields)
    variables = initial(ours, x)
    (y, stats), (their_y, their_stats) = (train(b, variables, x) for b in (ours, theirs))
    assert_close(y, their_y, max(ulp, 2**-7 if dtype == jnp.bfloat16 else 0))
    assert_close(stats, their_stats, 1e-4)


def test_complex_input_as_flax_tests_it() -> None:
    """Complex64 results have mean 0, variance 1, a complex running mean and a real running variance."""
    x = jax.lax.complex(normal((50, 4)), normal((50, 4), seed=1))
    ours, theirs = (
        b(
            use_running_average=False,
            momentum=0.9,
            param_dtype=jnp.complex64,
            **RAMP,
        )
        for b in (jnl.BatchNorm, nn.BatchNorm)
    )
    _, variables = ours.init_with_output(KEY, x)
    y, stats = train(ours, variables, x)
    assert y.dtype == stats["mean"].dtype == jnp.complex64 and stats["var"].dtype == jnp.float32
    assert_close((y, stats), train(theirs, variables, x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_state_in_param_dtype_on_request(dtype: Any) -> None:
    """``force_float32_reductions=False`` keeps the state in bfloat16 or float16."""
    layer = jnl.BatchNorm(False, 0, 0.5, param_dtype=dtype, force_float32_reductions=False)
    x = normal((4, 64), dtype)
    y, stats = train(layer, layer.init(KEY, x), x)
    assert y.dtype == stats["mean"].dtype == stats["var"].dtype == dtype
    exact = np.asarray(x, float)
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(stats["mean"], float), exact.mean(1) / 2, rtol=ulp)
    np.testing.assert_allclose(np.asarray(stats["var"], float), 0.5 + exact.var(1) / 2, rtol=ulp)


def test_fast_variance_changes_nothing() -> None:
    """``use_fast_variance`` is accepted, and both values are stable at mean/std 1e4."""
    x = 1e4 + normal((512, 3))
    fast, slow = (jnl.BatchNorm(False, use_fast_variance=b) for b in (True, False))
    variables = initial(fast, x)
    assert_equal(train(fast, variables, x), train(slow, variables, x))
    np.testing.assert_allclose(train(fast, variables, x)[0].std(0), 1, rtol=1e-3)


# --- our own options -----------------------------------------------------------------------------


def test_momentum_none_is_the_plain_average() -> None:
    """``momentum=None`` counts the batches and averages over all of them."""
    layer = jnl.BatchNorm(False, momentum=None)
    variables = initial(layer, X)
    assert_equal(variables["batch_stats"]["count"], jnp.zeros(3, jnp.int32))
    batches = [normal((20, 3), seed=i) + i for i in range(3)]
    for batch in batches:
        variables = {**variables, "batch_stats": train(layer, variables, batch)[1]}
    stats = variables["batch_stats"]
    assert_equal(stats["count"], jnp.full(3, 3, jnp.int32))
    np.testing.assert_allclose(stats["mean"], np.mean([b.mean(0) for b in batches], 0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], np.mean([b.var(0) for b in batches], 0), rtol=1e-5)


def test_momentum_none_evaluates_a_flax_checkpoint() -> None:
    """Evaluation does not read the count, so a checkpoint without one is sufficient."""
    with loose():
        theirs = nn.BatchNorm(True).init(KEY, X)
    y: Any = jnl.BatchNorm(True, momentum=None).apply(theirs, X)
    np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_unbiased_is_the_convention_of_pytorch() -> None:
    """The running variance is multiplied by n / (n - 1); the output uses the biased variance."""
    x = normal((5, 3))
    plain, unbiased = (
        jnl.BatchNorm(False, momentum=0.0),
        jnl.BatchNorm(False, momentum=0.0, unbiased=True),
    )
    variables = initial(plain, x)
    (y, stats), (y_unbiased, stats_unbiased) = (train(b, variables, x) for b in (plain, unbiased))
    assert_equal(y, y_unbiased)
    np.testing.assert_allclose(stats_unbiased["var"], np.var(x, 0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], np.var(x, 0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["bool", "int32", "uint8"])
def test_mask_with_nan_in_the_padding(kind: str) -> None:
    """With a boolean or integer mask, results match the unmasked part alone, and no gradient is NaN."""
    mask = jnp.arange(8) < 5
    x = jnp.where(mask[:, None], normal((8, 3)), jnp.nan)
    layer = jnl.BatchNorm(False, **RAMP)
    variables = initial(layer, x[:5])
    given = (3 * mask.astype(kind) if kind != "bool" else mask)[:, None]
    y, stats = train(layer, variables, x, mask=given)
    assert_close((y[:5], stats), train(layer, variables, x[:5]))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        y, _ = train(layer, {**variables, "params": params}, x, mask=given)
        return jnp.where(mask[:, None], y * normal((8, 3), seed=1), 0).sum()

    gradients = jax.grad(loss, (0, 1))(variables["params"], x)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert not gradients[1][5:].any()


def test_nan_in_the_padding_in_evaluation() -> None:
    """Unmasked elements are normalized as usual, and no gradient is NaN in a frozen layer."""
    mask = (jnp.arange(8) < 5)[:, None]
    x = jnp.where(mask, normal((8, 3)), jnp.nan)
    layer = jnl.BatchNorm(True, **RAMP)
    variables = initial(layer, x[:5])
    assert_equal(layer.apply(variables, x, mask=mask)[:5], layer.apply(variables, x[:5]))

    def loss(params: Any, x: jax.Array, mask: Any) -> jax.Array:
        y: Any = layer.apply({**variables, "params": params}, x, mask=mask)
        return (y[:5] * normal((5, 3), seed=1)).sum()

    of_params, of_x = jax.grad(loss, (0, 1))(variables["params"], x, mask)
    assert_close(of_params, jax.grad(loss)(variables["params"], x[:5], None))
    assert jnp.isfinite(of_x).all() and not of_x[5:].any()


def test_mask_is_that_of_flax() -> None:
    """For finite values, results with a mask match Flax, also in evaluation, where it has no effect."""
    mask = (jnp.arange(6) < 4).reshape(6, 1, 1, 1)
    ours, theirs = jnl.BatchNorm(**RAMP), nn.BatchNorm(**RAMP)
    variables = ours.init(KEY, X, True)
    for evaluating in (False, True):
        options: Fields = {"use_running_average": evaluating, "mask": mask}
        assert_close(train(ours, variables, X, **options), train(theirs, variables, X, **options))


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["theirs to ours", "ours to theirs"])
@pytest.mark.parametrize("through_bytes", [False, True], ids=["dict", "bytes"])
def test_checkpoints_are_interchangeable(direction: str, through_bytes: bool) -> None:
    """Trained variables of one load into the other, also as bytes, and give the same results."""
    pair = [nn.BatchNorm(False, **RAMP), jnl.BatchNorm(False, **RAMP)]
    source, target = pair if direction == "theirs to ours" else pair[::-1]
    with loose():
        variables = source.init(KEY, X)
        fresh = target.init(jax.random.key(1), X)
    variables = {**variables, "batch_stats": train(source, variables, X)[1]}
    loaded: Any = variables
    if through_bytes:
        loaded = serialization.from_bytes(fresh, serialization.to_bytes(variables))
    for options in (Fields(), {"mask": X[..., :1] > 0}):
        assert_close(train(target, loaded, X, **options), train(source, variables, X, **options))
    evaluating = [b.clone(use_running_average=True) for b in (target, source)]
    assert_close(train(evaluating[0], loaded, X), train(evaluating[1], variables, X))


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(True, True), (False, True), (None, None)], ids=str)
def test_mode_given_twice_or_not_at_all(at: tuple[bool | None, bool | None]) -> None:
    """``use_running_average`` in both the constructor and the call, or in neither, raises Flax's error."""
    field, argument = at
    ours = error(lambda: jnl.BatchNorm(field).init(KEY, X, argument))
    assert ours == error(lambda: nn.BatchNorm(field).init(KEY, X, argument))
    assert "use_running_average" in ours[1]


def test_training_without_mutable_statistics() -> None:
    """Without ``mutable=["batch_stats"]``, training raises Flax's error, word for word."""
    variables = nn.BatchNorm(True).init(KEY, X)
    ours = error(lambda: jnl.BatchNorm(False).apply(variables, X))
    assert ours == error(lambda: nn.BatchNorm(False).apply(variables, X))
    assert ours[0] is errors.ModifyScopeVariableError


@pytest.mark.parametrize("missing", ["params", "batch_stats"])
def test_missing_collections(missing: str) -> None:
    """Variables without one of the collections raise Flax's error."""
    variables = {k: v for k, v in nn.BatchNorm(True).init(KEY, X).items() if k != missing}
    ours = error(lambda: jnl.BatchNorm(True).apply(variables, X))
    assert ours == error(lambda: nn.BatchNorm(True).apply(variables, X))


# --- under Flax's transforms and tools -----------------------------------------------------------


class OfLayer(nn.Module):
    """A layer in the form that `nn.scan` requires."""

    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        """Normalizes a carry."""
        return self.norm(False, momentum=0.5, **RAMP)(x), None


class Scanned(nn.Module):
    """Three layers over their parameters, or three steps over one carried state."""

    norm: Any
    lifted: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes three times."""
        if "variable_carry" not in self.lifted:
            return nn.scan(OfLayer, length=3, **self.lifted)(self.norm)(x, None)[0]
        layer = OfLayer(self.norm)
        x, _ = layer(x, None)  # a carry must exist before the scan
        return nn.scan(lambda layer, x, _: layer(x, _), length=3, **self.lifted)(layer, x, None)[0]


OVER_LAYERS: Fields = {
    "variable_axes": {"params": 0, "batch_stats": 0},
    "split_rngs": {"params": True},
}
OVER_STEPS: Fields = {
    "variable_broadcast": "params",
    "variable_carry": "batch_stats",
    "split_rngs": {"params": False},
}
SYNCED: Fields = {
    "variable_axes": {"params": None, "batch_stats": None},
    "split_rngs": {"params": False},
    "axis_name": "batch",
}
MODELS = {
    "jit": lambda norm: nn.jit(norm)(False, **RAMP),
    "remat": lambda norm: nn.remat(norm)(False, **RAMP),
    "scan over layers": lambda norm: Scanned(norm, OVER_LAYERS),
    "scan with a carry": lambda norm: Scanned(norm, OVER_STEPS),
    "vmap of models": lambda norm: nn.vmap(norm, **OVER_LAYERS)(False, **RAMP),
    "vmap with axis_name": lambda norm: nn.vmap(norm, **SYNCED)(False, axis_name="batch"),
    "map_variables": lambda norm: nn.map_variables(norm, "params", mutable=True)(False, **RAMP),
    "Sequential": lambda norm: nn.Sequential([nn.Dense(4), norm(False, **RAMP), nn.relu]),
}


@pytest.mark.parametrize("name", MODELS)
def test_under_the_transforms_of_flax(name: str) -> None:
    """Variables, outputs, statistics and gradients match Flax's layer under the same transform."""

    def outcome(norm: Any) -> Any:
        model = MODELS[name](norm)

        def loss(params: Any, stats: Any, x: jax.Array) -> Any:
            variables = {"params": params, "batch_stats": stats}
            y, updated = model.apply(variables, x, mutable=["batch_stats"])
            return (y * COTANGENT[..., : y.shape[-1]]).sum() / 10, (y, updated)

        @jax.jit
        def initialize_and_step(x: jax.Array) -> Any:
            variables = model.init(KEY, x)
            by_all = jax.value_and_grad(loss, (0, 2), has_aux=True)
            return variables, by_all(variables["params"], variables["batch_stats"], x)

        return initialize_and_step(X)

    ours = outcome(jnl.BatchNorm)
    with loose():
        theirs = outcome(nn.BatchNorm)
    assert_equal(ours[0], theirs[0])
    assert_close(ours[1], theirs[1], 1e-4)


def test_vmap_with_axis_name_is_the_big_batch() -> None:
    """Statistics shared along a mapped axis are those of all examples in one batch."""
    layer = MODELS["vmap with axis_name"](jnl.BatchNorm)
    variables = initial(layer, X)
    y, updated = layer.apply(variables, X, mutable=["batch_stats"])
    big_y, big_stats = train(jnl.BatchNorm(False), variables, X.reshape(1, -1, 4, 3))
    assert_close((y.reshape(big_y.shape), updated["batch_stats"]), (big_y, big_stats))


def test_tabulate_counts_every_call() -> None:
    """There is one row for the layer, with the FLOPs of every call; helpers are not visible as methods."""
    layer = jnl.BatchNorm(False)
    options: Fields = {"show_repeated": True, "compute_flops": True, "compute_vjp_flops": True}
    table = layer.tabulate(KEY, X, console_kwargs={"width": 240}, **options)
    assert "batch_stats" in table and "params" in table
    assert "_running_stats" not in table


def test_no_method_but_call_is_intercepted() -> None:
    """`nn.intercept_methods` and profiler scopes see only ``__call__``, as in Flax's layer."""
    seen = []

    def record(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        seen.append(context.method_name)
        return function(*args, **kwargs)

    with nn.intercept_methods(record):
        jnl.BatchNorm(False).init(KEY, X)
    assert seen == ["__call__"]


CNN = '''
from functools import partial

import jax
from flax import linen as nn
from flax.linen import BatchNorm


class CNN(nn.Module):
    """A small model as a Flax user writes it."""

    @nn.compact
    def __call__(self, x, train):
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
        x = nn.relu(norm(epsilon=1e-3)(nn.Dense(8)(x)))
        return nn.Dense(3)(x.mean((1, 2)))
'''


def test_a_model_written_for_flax_after_changing_one_import() -> None:
    """Five training steps and an evaluation give the same losses as Flax."""
    ours = CNN.replace("from flax.linen import BatchNorm", "from jaxnorm.linen import BatchNorm")
    assert ours != CNN

    def losses(source: str) -> list[float]:
        namespace: dict[str, Any] = {"__name__": __name__}
        exec(source, namespace)
        model = namespace["CNN"]()
        x, target = normal((8, 6, 6, 3)), normal((8, 3), seed=1)
        variables = initial(model, x, train=False)

        @jax.jit
        def step(variables: Any) -> Any:
            def loss(params: Any) -> Any:
                y, updated = model.apply(
                    {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
                )
                return ((y - target) ** 2).mean(), updated

            (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
            params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
            return value, {"params": params, **updated}

        values = []
        for _ in range(5):
            value, variables = step(variables)
            values.append(float(value))
        y = model.apply(variables, x, train=False)
        return [*values, float(((y - target) ** 2).mean())]

    with loose():
        theirs = losses(CNN)
    np.testing.assert_allclose(losses(ours), theirs, rtol=1e-4)
    assert theirs[4] < theirs[0]
