"""PyTorch's weight norms in double precision: spectral norm, weight norm, unit vectors."""

import dataclasses
from functools import partial
from operator import attrgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx
from tests.norms.torch_layers import assert_close
from tests.norms.torch_rows import NORMALIZE, SPECTRAL, WEIGHT, Fields, Peer, Row

torch: Any = pytest.importorskip(
    "torch", minversion="2.13", reason="no PyTorch, or one without all of these arguments"
)


def named(row: Any) -> str | None:
    """The id of a test."""
    return row.name if isinstance(row, Row) else None


def parameter_of(row: Row) -> str:
    """PyTorch's name of the normalized parameter."""
    return row.options.get("name", "weight")


def make(row: Row, weight: np.ndarray) -> Any:
    """PyTorch's normalized layer for the row, in double precision, with this ``weight``."""
    first, second, *window = row.shape
    sizes = (first, second) if row.options["module"] == "ConvTranspose2d" else (second, first)
    layer = getattr(torch.nn, row.options["module"])(*sizes, *window[:1]).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.other = torch.nn.Parameter(layer.weight.clone())
    return attrgetter(row.theirs)(torch)(**{**row.options, "module": layer})


def stored_in(layer: Any, name: str) -> Any:
    """What PyTorch stores instead of a normalized parameter."""
    return getattr(layer.parametrizations, name)


def as_matrix(weight: Any, dim: int) -> np.ndarray:
    """A matrix with axis ``dim`` as rows and all other axes as columns."""
    return np.moveaxis(weight, dim, 0).reshape(weight.shape[dim], -1)


def as_kernel(weight: np.ndarray) -> np.ndarray:
    """Transposes PyTorch's (out, in, H, W) to Flax's (H, W, in, out)."""
    return weight.transpose(*range(2, weight.ndim), 1, 0) if weight.ndim > 1 else weight


def channels_last(x: Any) -> np.ndarray:
    """Transposes (N, C, H, W) to (N, H, W, C)."""
    return np.moveaxis(x, 1, -1)


@pytest.mark.parametrize("row", SPECTRAL.rows, ids=named)
def test_spectral_norm(row: Row) -> None:
    """Steps with changing weights match PyTorch, which starts a step from v, our u."""
    rng = np.random.default_rng(0)
    name, weight = parameter_of(row), rng.normal(size=row.shape)
    layer = make(row, weight)
    spectral, stored = stored_in(layer, name)[0], stored_in(layer, name).original
    options, dim = SPECTRAL.fields(row.arguments(torch)), spectral.dim
    assert dim == row.options.get("dim", 1 if row.options["module"] == "ConvTranspose2d" else 0)

    @jax.jit
    def step(matrix: Any, state: Any, dw: Any) -> Any:
        w, pull, new = jax.vjp(
            lambda m: jn.spectral_norm(m, state, **options), matrix, has_aux=True
        )
        return w, new, pull(dw)[0]

    with jax.enable_x64(True):
        state = jn.SpectralState(jnp.asarray(spectral._v.numpy())[None], jnp.ones(()))
        for _ in range(3):
            weight = weight + rng.normal(scale=0.1, size=row.shape)
            dw = rng.normal(size=row.shape)
            with torch.no_grad():
                stored.copy_(torch.from_numpy(weight))
            layer.zero_grad()
            w: Any = getattr(layer, name)
            w.backward(torch.from_numpy(dw))
            ours, state, gradient = step(as_matrix(weight, dim), state, as_matrix(dw, dim))
            theirs = tuple(as_matrix(a.numpy(), dim) for a in (w.detach(), stored.grad))
            assert_close((ours, gradient), theirs, row.name)
            assert_close(state.u, spectral._v.numpy()[None], row.name)


def test_spectral_norm_at_construction() -> None:
    """PyTorch takes 15 steps at construction, and one more in a first call that it makes itself."""
    layer = torch.nn.Linear(3, 4).double()
    weight: Any = np.eye(4, 3) * [1.0, 0.9, 0.8]  # so close that one more step makes a difference
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    torch.manual_seed(0)
    spectral = stored_in(attrgetter(SPECTRAL.theirs[0])(torch)(layer), "weight")[0]
    torch.manual_seed(0)
    _, v = (torch.empty(n, dtype=torch.float64).normal_().numpy() for n in (4, 3))
    with jax.enable_x64(True):
        start = jn.SpectralState(jnp.asarray(v)[None], jnp.ones(()))
        after = jax.jit(lambda n: jn.spectral_norm(weight, start, n_steps=n)[1].u, static_argnums=0)
        assert_close(after(16), spectral._v.numpy()[None], "16 steps")
        assert np.abs(after(15) - after(16)).max() > 1e-8


def through_linen(
    ours: str, row: Row, fields: Fields, params: Any, stats: Any, x: Any, train: bool
) -> Any:
    """Runs our Linen module around Flax's layer."""
    inner = {"Linear": nn.Dense(4), "Conv2d": nn.Conv(4, (2, 2), padding="VALID")}
    path = f"layer_instance/{'kernel' if parameter_of(row) == 'weight' else 'bias'}"
    variables = {"layer_instance": {name: params[name] for name in ("kernel", "bias")}}
    scales = {f"{path}/{name}": params[name] for name in params if name == "scale"}
    y, new = getattr(jnl, ours)(inner[row.options["module"]], **fields).apply(
        {
            "params": {**variables, **scales},
            "batch_stats": {f"{path}/{name}": value for name, value in stats.items()},
        },
        x,
        use_running_average=not train,
        mutable=["batch_stats"],
    )
    return y, {name: new["batch_stats"][f"{path}/{name}"] for name in stats}


def through_nnx(
    ours: str, row: Row, fields: Fields, params: Any, stats: Any, x: Any, train: bool
) -> Any:
    """Runs our NNX module around Flax's layer."""
    rngs, path = nnx.Rngs(0), "kernel" if parameter_of(row) == "weight" else "bias"
    inner = {
        "Linear": lambda: nnx.Linear(3, 4, rngs=rngs),
        "Conv2d": lambda: nnx.Conv(3, 4, (2, 2), padding="VALID", rngs=rngs),
    }[row.options["module"]]()
    inner.kernel, inner.bias = nnx.Param(params["kernel"]), nnx.Param(params["bias"])
    if "variable_filter" in fields:
        fields = {**fields, "variable_filter": nnx.PathContains(path)}
    layer = getattr(jnx, ours)(inner, **fields, rngs=rngs)
    if "scale" in params:
        layer.scales[path,] = nnx.Param(params["scale"])
    for name, value in stats.items():
        layer.batch_stats[path, name] = nnx.BatchStat(value)
    y = layer(x, use_running_average=not train)
    return y, {name: layer.batch_stats[path, name][...] for name in stats}


def parameters(layer: Any, name: str, part: Any) -> Fields:
    """``part`` of PyTorch's parameters, with our names and Flax's layout."""
    stored = stored_in(layer, name)
    direction = stored.original if hasattr(stored, "original") else stored.original1
    weight, bias = {"weight": (direction, layer.bias), "bias": (layer.weight, direction)}[name]
    found = {"kernel": as_kernel(part(weight)), "bias": part(bias)}
    if direction is not getattr(stored, "original", None):
        found["scale"] = np.squeeze(part(stored.original0))
    return found


def wrapped() -> list[Any]:
    """All weight norms, and the spectral norms of outputs with enough steps for half a step not to matter."""
    far = [
        dataclasses.replace(row, options={**row.options, "n_power_iterations": 40})
        for row in SPECTRAL.rows[:2]
    ]
    pairs = [(SPECTRAL, row) for row in far] + [(WEIGHT, row) for row in WEIGHT.rows]
    return [pytest.param(peer, row, id=row.name) for peer, row in pairs]


@pytest.mark.parametrize(("peer", "row"), wrapped())
def test_wrapped_layer(peer: Peer, row: Row) -> None:
    """Gradient descent steps around Flax's layers match in y, all gradients and state, also in evaluation."""
    rng, name = np.random.default_rng(0), parameter_of(row)
    weight = rng.normal(size=row.shape)
    weight[0] += 2  # one direction dominates, so that few steps suffice
    layer = make(row, weight)
    fields = peer.fields(row.arguments(torch))
    ways = {"linen": through_linen, "nnx": through_nnx}

    @jax.jit
    def step(params: Any, states: Any, x: Any, dy: Any) -> Any:
        results = {}
        for way, run in ways.items():

            def f(params: Any, x: Any, run: Any = run, state: Any = states[way]) -> Any:
                return run(peer.ours, row, fields, params, state, x, True)

            y, pull, new = jax.vjp(f, params, x, has_aux=True)
            y_eval, kept = run(peer.ours, row, fields, params, states[way], x, False)
            results[way] = (y, *pull(dy), y_eval), new, kept
        return results

    with jax.enable_x64(True):
        stats = {}
        if peer is SPECTRAL:
            stats = {"u": stored_in(layer, name)[0]._u.numpy().copy()[None], "sigma": np.ones(())}
        states = dict.fromkeys(ways, stats)
        for _ in range(2):
            x = rng.normal(size=(2, 3, *row.shape[2:]))
            dy = rng.normal(size=(2, 4, *(1,) * (x.ndim - 2)))
            params = parameters(layer, name, lambda p: p.detach().numpy().copy())
            layer.train()
            layer.zero_grad()
            leaf = torch.from_numpy(x.copy()).requires_grad_()
            y = layer(leaf)
            y.backward(torch.from_numpy(dy))
            gradients = parameters(layer, name, lambda p: p.grad.numpy())
            layer.eval()
            y_eval = layer(torch.from_numpy(x))
            ys = (channels_last(a.detach().numpy()) for a in (y, y_eval))
            theirs = (next(ys), gradients, channels_last(leaf.grad.numpy()), next(ys))
            found = step(params, states, channels_last(x), channels_last(dy))
            for way, (ours, state, kept) in found.items():
                assert_close(ours, theirs, way)
                assert_close(kept, states[way], way)  # evaluation stores nothing
                states[way] = state
                if stats:
                    spectral = stored_in(layer, name)[0]
                    assert_close(state["u"], spectral._u.numpy()[None], way)
            with torch.no_grad():
                for parameter in layer.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("row", WEIGHT.rows, ids=named)
def test_weight_norm(row: Row) -> None:
    """The function, on PyTorch's layout with axis ``dim``, matches; initially it changes nothing."""
    rng, name = np.random.default_rng(0), parameter_of(row)
    layer = make(row, rng.normal(size=row.shape))
    stored, axes = stored_in(layer, name), row.options.get("dim", 0)
    bare = stored.original1.detach().numpy().copy()
    axes = () if axes in (None, -1) else axes
    with torch.no_grad():
        np.testing.assert_allclose(getattr(layer, name), bare, rtol=1e-12)
        stored.original0.mul_(1.5)
        stored.original1.add_(0.1)
    with jax.enable_x64(True):
        v, g = (jnp.asarray(p.detach().numpy()) for p in (stored.original1, stored.original0))
        w = jax.jit(partial(jn.weight_norm, feature_axes=axes, epsilon=0.0))(v, g.squeeze())
        assert_close(w, getattr(layer, name).detach().numpy(), row.name)


@pytest.mark.parametrize("row", WEIGHT.rows[:3], ids=named)
def test_weight_norm_starts_with_the_lengths(row: Row) -> None:
    """``scale_init=None`` initializes the modules with PyTorch's g, ‖v‖, so wrapping changes nothing."""
    weight = np.random.default_rng(0).normal(size=row.shape)
    g = np.squeeze(stored_in(make(row, weight), "weight").original0.detach().numpy())
    fields, path = WEIGHT.fields(row.arguments(torch)), "layer_instance/kernel/scale"
    with jax.enable_x64(True):
        kernel, wide = jnp.asarray(as_kernel(weight)), dict[str, Any](param_dtype=jnp.float64)
        inner = nn.Dense(4, kernel_init=lambda *_: kernel, **wide)
        module = jnl.WeightNorm(inner, **fields, **wide)
        variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 3)))
        assert_close(variables["params"][path], g, "Linen")
        layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        layer.kernel = nnx.Param(kernel)
        fields["variable_filter"] = nnx.PathContains("kernel")
        scales = jnx.WeightNorm(layer, **fields, **wide, rngs=nnx.Rngs(0)).scales
        assert scales is not None
        assert_close(scales["kernel",][...], g, "NNX")


@pytest.mark.parametrize("row", NORMALIZE.rows, ids=named)
def test_normalize(row: Row) -> None:
    """Vectors of unit length match, with their gradient; zeros stay zeros."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=row.shape), rng.normal(size=row.shape)
    leaf = torch.from_numpy(x).requires_grad_()
    y = attrgetter(row.theirs)(torch)(leaf, **row.options)
    y.backward(torch.from_numpy(dy))
    options = NORMALIZE.fields(row.arguments(torch))
    with jax.enable_x64(True):

        @jax.jit
        def both(x: Any, dy: Any) -> Any:
            y, pull = jax.vjp(lambda x: jn.l2_normalize(x, **options), x)
            return y, *pull(dy)

        assert_close(both(x, dy), (y.detach().numpy(), leaf.grad.numpy()), row.name)
        assert not both(np.zeros_like(x), dy)[0].any()
