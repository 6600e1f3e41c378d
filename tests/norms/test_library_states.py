"""Norms with running statistics of timm, sbx, brax and others: state after three steps, and evaluation."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import linen as jnl, tools
from tests.cases import draw
from tests.norms.libraries import MARKS, assert_same, differentiated, load, module_of, parameters_of

pytestmark = MARKS

FEATURES = 8


def batches(*shape: int) -> list[Any]:
    """Three batches, each with other statistics."""
    rng = np.random.default_rng(0)
    return [draw(rng, shape, "float32", 0.5 + i, 1.0 + i) for i in range(3)]


@pytest.mark.parametrize("name", ["B0", "B1", "B2"])
def test_timm(name: str) -> None:
    """The EvoNorms: outputs and gradients of each step."""
    theirs = module_of(f"timm.layers:EvoNorm2d{name}", {"num_features": FEATURES})
    p = parameters_of(theirs)
    names = {"scale": "weight", "bias": "bias"} | ({"v": "v"} if "v" in p else {})
    params = {name: p[s] for name, s in names.items()}
    ours: Any = getattr(jnl, f"EvoNorm{name}")(feature_axes=1, unbiased=True)
    kept = {"mean": jnp.zeros(FEATURES), "var": jnp.ones(FEATURES)}

    @jax.jit
    def step(params: Any, kept: Any, x: Any, dy: Any) -> Any:
        def run(params: Any, x: Any) -> Any:
            variables = {"params": params, "batch_stats": kept}
            return ours.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

        y, pull, updated = jax.vjp(run, params, x, has_aux=True)
        return (y, pull(dy)), updated["batch_stats"]

    for x in batches(6, FEATURES, 5, 4):
        dy = draw(np.random.default_rng(1), x.shape, "float32")
        got, kept = step(params, kept, x, dy)
        y, (grads, dx) = differentiated(theirs, [x], dy, lambda layer, x: layer(x))
        assert_same(got, (y, ({name: grads[s] for name, s in names.items()}, dx)))
        assert_same(kept["var"], theirs.running_var.numpy())
        y = ours.apply({"params": params, "batch_stats": kept}, x, use_running_average=True)
        theirs.eval()
        assert_same(y, theirs(load("torch").from_numpy(x)).detach().numpy())
        theirs.train()


def test_sbx() -> None:
    """CrossQ's batch renorm, before and after the warm-up."""
    theirs: Any = load("sbx.common.jax_layers:BatchRenorm")(warmup_steps=1)
    ours: Any = jnl.BatchRenorm(form="crossq", rmax=3.0, dmax=5.0, warmup_steps=1)
    xs = batches(16, FEATURES)
    dy = draw(np.random.default_rng(1), xs[0].shape, "float32")
    states = [
        dict(layer.init(jax.random.key(0), xs[0], use_running_average=False))
        for layer in (ours, theirs)
    ]
    for x in xs:
        results = []
        for layer, variables in zip((ours, theirs), states, strict=True):

            def run(params: Any, x: Any, layer: Any = layer, variables: Any = variables) -> Any:
                options: Any = {"use_running_average": False, "mutable": ["batch_stats"]}
                return layer.apply(variables | {"params": params}, x, **options)

            y, pull, updated = jax.vjp(run, variables["params"], x, has_aux=True)
            variables |= updated
            kept = {name: variables["batch_stats"][name] for name in ("mean", "var")}
            evaluated = layer.apply(variables, x, use_running_average=True)
            results.append((y, pull(dy), kept, evaluated))
        assert_same(*results)
    stats = {n: a for n, a in states[1]["batch_stats"].items() if n not in ("r_max", "d_max")}
    loaded = tools.convert(states[1] | {"batch_stats": stats}, like=states[0])
    jax.tree.map(np.testing.assert_array_equal, loaded, states[1] | {"batch_stats": stats})


def test_brax() -> None:
    """Observations with weights."""
    brax = load("brax.training.acme.running_statistics")
    theirs, ours = brax.init_state(jnp.zeros(FEATURES)), jn.init_input_norm(FEATURES)
    step = jax.jit(partial(jn.input_norm, epsilon=0.0, max_abs=1.5))
    for i, x in enumerate(batches(16, FEATURES)):
        weights = np.arange(16, dtype=np.float32) % (3 + i)
        y, ours = step(x, ours, weights=weights[:, None])
        theirs = brax.update(theirs, x, weights=weights)
        assert_same((ours.mean, jnp.sqrt(ours.var)), (theirs.mean, theirs.std))
        assert_same(y, brax.normalize(x, theirs, max_abs_value=1.5))
        assert_same(jn.input_norm_inverse(y, ours, epsilon=0.0), brax.denormalize(y, theirs))


def test_stable_baselines() -> None:
    """The statistics of VecNormalize, and of Gym, which start with 0.0001 values of variance 1."""
    theirs = load("stable_baselines3.common.running_mean_std:RunningMeanStd")(shape=(FEATURES,))
    ours = jn.init_input_norm(FEATURES)._replace(count=jnp.full(FEATURES, 1e-4))
    for x in batches(16, FEATURES):
        y, ours = jn.input_norm(x, ours, max_abs=10.0)
        theirs.update(x)
        assert_same((ours.mean, ours.var), (theirs.mean, theirs.var))
        assert_same(y, np.clip((x - theirs.mean) / np.sqrt(theirs.var + 1e-8), -10, 10))


def test_scikit_learn() -> None:
    """StandardScaler, which leaves NaN out as a mask does."""
    theirs, ours = load("sklearn.preprocessing:StandardScaler")(), jn.init_input_norm(FEATURES)
    for i, x in enumerate(batches(16, FEATURES)):
        known = np.indices(x.shape).sum(0) % (3 + i) != 0
        y, ours = jn.input_norm(x, ours, epsilon=0.0, mask=known)
        theirs.partial_fit(np.where(known, x, np.nan))
        assert_same((ours.mean, ours.var), (theirs.mean_, theirs.var_))
        assert_same(y, theirs.transform(x))
